"""Every family of the twins: the engine on any layout against plain torch on the whole batch."""

from __future__ import annotations

import pytest
import torch

from llmscale.config import RunConfig
from llmscale.model.experts import Experts
from tests.ranks import run_ranks
from tests.systems.cases import CLIP, STEPS, Figures, global_batch, plain_torch, train_on_rank, twin

TOLERANCE = 1e-5
"""Relative, of each term of the loss and of the gradient's norm, in fp32 over five steps."""
FAMILIES = (
    "gpt3_175b", "bert_base", "t5_base", "gpt_neo_2_7b", "gpt_j_6b", "gpt_neox_20b", "mt_nlg_530b",
    "pangu_alpha_200b", "wu_dao_2", "llama3_8b", "qwen3_8b", "mixtral_8x7b",
)  # fmt: skip
# Half of what is chosen finds no room; most experts get no token at all, so that their weights are unused.
FULL = "model.experts={count: 8, every: 2, capacity_factor: 0.5, balance_weight: 0.5, z_weight: 0.1}"
IDLE = "model.experts={count: 96, per_token: 1, balance_weight: 0.02, ffn_size: 8}"
CASES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in FAMILIES},
    "full experts": ("wu_dao_2", FULL),
    "idle experts": ("mixtral_8x7b", IDLE),
    "experts in an encoder": ("bert_base", "model.experts={count: 4, capacity_factor: 1.0}"),
    "experts in both": ("t5_base", "model.experts={count: 4, every: 2}"),
}
# (ZeRO stage, largest micro batch) by number of ranks.
LAYOUTS = {1: [(1, 8), (1, 1)], 2: [(1, 1), (2, 4), (3, 1)]}
MORE_LAYOUTS = {1: [(2, 3), (3, 2)], 2: [(1, 4), (2, 1), (3, 4)]}


def layout(case: str, stage: int, micro: int) -> RunConfig:
    return twin(*CASES[case], f"engine.zero_stage={stage}", f"train.micro_batch={micro}")


@pytest.fixture(scope="module")
def references() -> dict[str, list[Figures]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {case: plain_torch(twin(*CASES[case]))[0] for case in CASES}
    torch.set_num_threads(threads)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_layouts_train_as_plain_torch(ranks: int, references: dict[str, list[Figures]]) -> None:
    train_and_compare(ranks, LAYOUTS[ranks], references)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", MORE_LAYOUTS)
def test_more_layouts_train_as_plain_torch(ranks: int, references: dict[str, list[Figures]]) -> None:
    train_and_compare(ranks, MORE_LAYOUTS[ranks], references)


def train_and_compare(ranks: int, layouts: list[tuple[int, int]], references: dict[str, list[Figures]]) -> None:
    cases = [(case, *how) for how in layouts for case in CASES]
    results = run_ranks(ranks, train_on_rank, [layout(*case) for case in cases])
    for rank, found in enumerate(results):
        for case, figures in zip(cases, found, strict=True):
            expected = references[case[0]]
            assert figures == [pytest.approx(row, rel=TOLERANCE) for row in expected], (rank, case)


def test_the_references_are_what_they_should_be(references: dict[str, list[Figures]]) -> None:
    """Clipping is active, losses fall, and there are as many terms as the objective has."""
    terms = {"bert_base": 2, "wu_dao_2": 2, "mixtral_8x7b": 2, "full experts": 2, "idle experts": 2,
             "experts in an encoder": 3, "experts in both": 2}  # fmt: skip
    for case, rows in references.items():
        assert len(rows) == STEPS
        assert {len(row) for row in rows} == {terms.get(case, 1) + 1}
        assert all(row[-1] > 1.2 * CLIP for row in rows), case
        assert rows[-1][0] < rows[0][0], case


def test_experts_are_full_and_idle() -> None:
    full, idle = twin(*CASES["full experts"]), twin(*CASES["idle experts"])
    _, model = plain_torch(idle)
    for module in model.modules():
        if isinstance(module, Experts):
            unused = (module.up.weight.grad == 0).flatten(1).all(1)
            assert 10 < int(unused.sum()) < 96
    _, model = plain_torch(full)
    batch = global_batch(full, 0)
    kept = []
    room = Experts._within_capacity

    def counting(module: Experts, *routing: torch.Tensor | None) -> torch.Tensor:
        kept.append(room(module, *routing))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experts, "_within_capacity", counting)
        model(batch.inputs)
    assert 0.3 < float(torch.stack(kept).mean()) < 0.7
