"""Expert parallelism on real ranks against a plain loop in one process: two experts for each token, many of them full,
router losses that weigh."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmscale.distributed.process_group import join, leave, read_world
from llmscale.model.experts import Experts
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.train.start import PREEMPTED
from tests.distributed.cases import Case, case_config, run_cases, write_corpus
from tests.distributed.parts import differences, model_config, plain_loop, require_equal, train_on_rank
from tests.engine.cases import VOCAB, resume_all_on_rank, save_all_on_rank
from tests.ranks import run_ranks
from tests.train.runs import evaluations, ledger, metrics

ADAMW: dict[str, Any] = {"optimizer__name": "adamw", "optimizer__lr": 0.01}
BLOCK: dict[str, Any] = {"engine__activation_checkpointing": "block"}
SELECTIVE: dict[str, Any] = {"engine__activation_checkpointing": "selective"}
SEQUENCE_PARALLEL: dict[str, Any] = {"parallel__sequence_parallel": True}
ZERO_2: dict[str, Any] = {"engine__zero_stage": 2}
DROPOUT: dict[str, Any] = {"model__dropout": 0.1}
BUCKETS: dict[str, Any] = {"engine__bucket_elements": 1000}
"""Gradients travel in many small buckets, of which some hold experts and others."""

NARROW: list[tuple[str, dict[str, Any]]] = [("wu-dao", {}), ("dropless", ADAMW | ZERO_2)]

# (ranks, expert, tensor): the ranks without tensor parallelism are data parallelism.
CASES: dict[tuple[int, int, int], list[tuple[str, dict[str, Any]]]] = {
    (2, 2, 1): [
        ("wu-dao", {}),
        ("wu-dao", ADAMW | ZERO_2),
        ("mixtral", ADAMW | BUCKETS),
        ("mixtral", ZERO_2 | BUCKETS),
        ("dropless", DROPOUT | BLOCK),
        ("mixtral", SELECTIVE),
    ],
    (4, 4, 1): [("wu-dao", ADAMW), ("mixtral", ZERO_2), ("dropless", {})],
    (4, 2, 1): [("wu-dao", BUCKETS), ("mixtral", ADAMW | ZERO_2), ("dropless", ZERO_2)],
    (4, 2, 2): [
        ("wu-dao", {}),
        ("mixtral", ADAMW | ZERO_2),
        ("dropless", ADAMW | SEQUENCE_PARALLEL),
        ("wu-dao", SEQUENCE_PARALLEL | BLOCK | ZERO_2),
    ],
}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(case, marks=() if case == (4, 2, 2) else pytest.mark.slow) for case in CASES],
    ids=lambda layout: "{}-ranks-ep-{}-tp-{}".format(*layout),
)
def test_ranks_that_share_experts_train_as_one_process(layout: tuple[int, int, int]) -> None:
    ranks, expert, tensor = layout
    shared = {"parallel__expert": expert, "parallel__tensor": tensor}
    found = run_ranks(
        ranks, train_on_rank, [model_config(name, **shared, **changes) for name, changes in CASES[layout]]
    )
    for (name, changes), trained in zip(CASES[layout], found[0], strict=True):
        require_equal(f"{name} {changes}", model_config(name, **changes), trained)


def test_experts_drop_tokens_and_their_losses_count() -> None:
    """Without a limit the same routers learn something else, and so they do without either of their losses."""
    settings = "{count: 4, per_token: 2, every: 2, ffn_size: 24, "
    limited = plain_loop(model_config("wu-dao"))
    for rest in (
        "balance_weight: 0.2, z_weight: 0.1}",
        "capacity_factor: 0.6, balance_weight: 0, z_weight: 0.1}",
        "capacity_factor: 0.6, balance_weight: 0.2}",
    ):
        other = plain_loop(model_config("wu-dao", model__experts=settings + rest))
        assert differences(limited, other)["blocks.1.feed_forward.router.weight"] > 0.02, rest


def test_checkpoints_move_between_one_process_and_ranks_that_share_experts(tmp_path: Path) -> None:
    alone = model_config("mixtral", **ADAMW)
    shared = model_config("mixtral", **ADAMW, parallel__expert=2, parallel__tensor=2)
    wide = model_config("mixtral", **ADAMW, **ZERO_2, parallel__expert=2)
    whole = run_ranks(1, save_all_on_rank, [(alone, tmp_path / "alone")], 2, 3)[0][0]
    saved = run_ranks(4, save_all_on_rank, [(shared, tmp_path / "shared"), (wide, tmp_path / "wide")], 2, 3)[0]
    folders = [tmp_path / name for name in ("alone", "shared", "wide")]
    back = run_ranks(1, resume_all_on_rank, [(alone, folder) for folder in folders[1:]], 2, 3)[0]
    there = run_ranks(4, resume_all_on_rank, [(shared, folders[0]), (wide, folders[0]), (wide, folders[1])], 2, 3)[0]
    for figures in (*saved, *back, *there):
        assert figures == [pytest.approx(row, rel=1e-5) for row in whole]


def test_a_run_moves_from_one_process_to_ranks_that_share_experts_and_back(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    model = "{count: 4, per_token: 2, every: 2, capacity_factor: 0.6, balance_weight: 0.2, z_weight: 0.1}"

    def run(ranks: int, name: str, stop: int | None = None, **layout: Any) -> list[list[int]]:
        config = case_config(tmp_path, name, model__experts=model, checkpoint__interval=2, **layout)
        return run_cases(ranks, [Case(config, few_targets=True, stop=stop and (stop, ranks - 1, signal.SIGTERM))])

    assert run(1, "alone") == [[0]]
    assert run(1, "moved", stop=2) == [[PREEMPTED]]
    assert run(4, "moved", stop=4, parallel__expert=2, parallel__tensor=2, **ZERO_2) == [[PREEMPTED]] * 4
    assert run(4, "moved", parallel__expert=2) == [[0]] * 4
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    assert ledger(moved) == ledger(alone)
    assert metrics(moved) == [pytest.approx(row, rel=1e-5) for row in metrics(alone)]
    assert len(evaluations(alone)) == 3
    assert evaluations(moved) == [pytest.approx(row, rel=1e-5) for row in evaluations(alone)]


@pytest.mark.slow
def test_compiled_layers_do_not_compile_the_exchange() -> None:
    compiled = model_config("mixtral", engine__compile=True, parallel__expert=2)
    require_equal("compiled", model_config("mixtral"), run_ranks(2, train_on_rank, [compiled], timeout=500)[0][0])


def test_bf16_passes_and_offloaded_states() -> None:
    shared = {"parallel__expert": 2}
    bf16 = [model_config(name, engine__dtype="bf16", **shared, **changes) for name, changes in NARROW]
    offloaded = model_config("mixtral", **ADAMW, engine__offload="optimizer", **ZERO_2, **shared)
    *narrow, last = run_ranks(4, train_on_rank, [*bf16, offloaded])[0]
    for (name, changes), trained in zip(NARROW, narrow, strict=True):
        expected = plain_loop(model_config(name, **changes))
        assert trained.figures == [pytest.approx(row, rel=1e-2) for row in expected.figures]
    require_equal("offloaded", model_config("mixtral", **ADAMW), last)


def experts_on_rank(crowded: bool) -> tuple[float, dict[str, float]]:
    """One layer of experts on two ranks; `crowded`: all tokens go to the experts of the first rank."""
    join(read_world("cpu"))
    settings = model_config("dropless").model
    alone, shared = (
        init.build(settings, VOCAB, 0, grid=grid)
        for grid in (None, RankGrid(data=2, rank=dist.get_rank(), expert=2).with_groups())
    )
    whole, part = (next(m for m in model.modules() if isinstance(m, Experts)) for model in (alone, shared))
    generator = torch.Generator().manual_seed(dist.get_rank())
    hidden = torch.randn(2, 5, settings.hidden_size, generator=generator)
    if crowded:
        with torch.no_grad():
            for layer in (whole, part):
                layer.router.weight.zero_()
                layer.router.weight[:4] = torch.ones(4, settings.hidden_size) * torch.arange(1, 5)[:, None]
        hidden = hidden.abs()
    results = []
    for layer in (whole, part):
        entering = hidden.clone().requires_grad_()
        mixed, _ = layer(entering)
        mixed.square().sum().backward()
        results.append((mixed.detach(), entering.grad))
    wrong = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    gradients = {}
    for name, parameter in part.named_parameters():
        expected = dict(whole.named_parameters())[name].grad
        if not name.startswith("router"):
            # Of the tokens of both ranks.
            dist.all_reduce(expected)
            expected = expected.chunk(2)[dist.get_rank()]
        gradients[name] = float((parameter.grad - expected).abs().max())
    leave()
    return wrong, gradients


@pytest.mark.parametrize("crowded", [False, True])
def test_one_layer_and_its_gradients_by_name(crowded: bool) -> None:
    for wrong, gradients in run_ranks(2, experts_on_rank, crowded):
        assert wrong < 1e-6
        assert len(gradients) == 5
        assert all(difference < 1e-5 for difference in gradients.values()), gradients


def test_who_shares_experts_and_who_has_the_same() -> None:
    """By enumeration: consecutive data-parallel ranks share them, at every place of the other axes."""
    for expert, tensor, data in ((1, 1, 4), (2, 1, 4), (4, 1, 4), (2, 2, 4), (3, 2, 6), (2, 3, 2)):
        grids = [RankGrid(data=data, tensor=tensor, rank=rank, expert=expert) for rank in range(data * tensor)]
        for rank, grid in enumerate(grids):
            d, t = divmod(rank, tensor)
            everyone = [(other, *divmod(other, tensor)) for other in range(data * tensor)]
            assert grid.expert_ranks() == [o for o, e, u in everyone if u == t and e // expert == d // expert]
            assert grid.expert_replicas() == [o for o, e, u in everyone if u == t and e % expert == d % expert]
