"""Frozen parameters: training the others equals plain torch with `requires_grad` false, in every layout; frozen tensors
keep their values to the bit, and are in every checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig
from tests.engine.cases import (
    STEPS,
    Figures,
    Named,
    build,
    case_config,
    plain_torch,
    resume_all_on_rank,
    save_all_on_rank,
)
from tests.ranks import run_ranks

SGD = {"optimizer__name": "sgd", "optimizer__lr": 0.3, "optimizer__weight_decay": 0.0}
LAST = '["blocks.1", "norm"]'
MIDDLE = '["blocks.*.attention.query.*", "blocks.0.feed_forward*", "positions"]'
EXPERTS = {"model__experts": "{count: 4, per_token: 2, balance_weight: 0.0}", "parallel__expert": 2}
ALONE: dict[str, Any] = {"engine__zero_stage": 1}
BF16 = {"engine__dtype": "bf16"}


def config(patterns: str, **changes: Any) -> RunConfig:
    shape = {
        "model__hidden_size": 32,
        "model__heads": 4,
        "model__kv_heads": 2,
        "model__ffn_size": 64,
        "model__vocab_multiple": 2,
    }
    tuned = {"finetune__train": patterns, "train__init_from": "other"}
    return case_config(**{**shape, **tuned, "optimizer__clip": 0.05, **changes})


def is_trained(patterns: str) -> Callable[[str], bool]:
    """The same choice, said by hand."""
    if patterns == LAST:
        return lambda name: name.startswith(("blocks.1.", "norm."))
    return lambda name: ".query." in name or name.startswith(("blocks.0.feed_forward", "positions"))


def expected(case: RunConfig, patterns: str) -> tuple[list[Figures], nn.Module]:
    """A plain loop over what is trained."""

    def make(named: Named, _: RunConfig) -> list[torch.optim.Optimizer]:
        for name, parameter in named:
            parameter.requires_grad_(is_trained(patterns)(name))
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        if case.optimizer.name == "sgd":
            return [torch.optim.SGD([{"params": [p for _, p in trained], "lr_scale": 1.0}], lr=1.0)]
        decayed = [{"params": [p for _, p in trained if p.dim() == 2], "weight_decay": 0.1, "lr_scale": 1.0}]
        others = [{"params": [p for _, p in trained if p.dim() == 1], "weight_decay": 0.0, "lr_scale": 1.0}]
        betas, eps = case.optimizer.betas, case.optimizer.eps
        return [torch.optim.AdamW(decayed + others, lr=1.0, betas=betas, eps=eps)]

    return plain_torch(case, STEPS, make)


def check(ranks: int, cases: list[tuple[str, dict[str, Any]]], folder: Path, tolerance: float = 1e-5) -> None:
    """Train, save, resume in the same layout; beside the plain loop."""
    jobs = [(config(patterns, **changes), folder / str(i)) for i, (patterns, changes) in enumerate(cases)]
    saved = run_ranks(ranks, save_all_on_rank, jobs, 2, STEPS - 2)[0]
    fresh = [(case.model_copy(update={"run": case.run.model_copy(update={"seed": 99})}), path) for case, path in jobs]
    resumed = run_ranks(ranks, resume_all_on_rank, fresh, 2, STEPS - 2)[0]
    for (patterns, changes), (case, path), after, again in zip(cases, jobs, saved, resumed, strict=True):
        assert again == after, f"{changes}: not exact after a resume"
        figures, model = expected(case, patterns)
        assert min(norm for _, norm in figures) > case.optimizer.clip
        assert after == [pytest.approx(row, rel=tolerance) for row in figures[2:]], changes
        require_frozen(path, case, patterns, model)


def require_frozen(path: Path, case: RunConfig, patterns: str, model: nn.Module) -> None:
    """The checkpoint has every tensor; what is frozen as it was, and no state of it."""
    checkpoint, start = newest_intact(path), dict(build(case).named_parameters())
    assert sorted(checkpoint.names) == sorted(start)
    for name, parameter in start.items():
        same = torch.equal(checkpoint.full(name), parameter.detach())
        assert same != is_trained(patterns)(name), name
        moments = case.optimizer.name == "adamw" and is_trained(patterns)(name)
        assert sorted(checkpoint.kinds(name)) == (["exp_avg", "exp_avg_sq", "weight"] if moments else ["weight"]), name


def test_one_process(tmp_path: Path) -> None:
    check(1, [(LAST, {**ALONE, **SGD}), (MIDDLE, {"engine__zero_stage": 3})], tmp_path)


def test_two_ranks(tmp_path: Path) -> None:
    check(
        2,
        [
            (MIDDLE, {"parallel__data": 2, "engine__zero_stage": 1, **SGD}),
            (LAST, {"parallel__data": 2, "engine__zero_stage": 2}),
            (MIDDLE, {"parallel__data": 2, "engine__zero_stage": 3, **SGD}),
            (LAST, {"parallel__tensor": 2}),
            # Nothing of the first stage is trained.
            (LAST, {"parallel__pipeline": 2, **SGD}),
            (MIDDLE, {"parallel__pipeline": 2}),
            (MIDDLE, {"parallel__sequence": 2, **SGD}),
            (LAST, {"parallel__data": 2, "engine__zero_stage": 2, **EXPERTS, **SGD}),
        ],
        tmp_path,
    )


@pytest.mark.slow
def test_four_ranks(tmp_path: Path) -> None:
    check(
        4,
        [
            (LAST, {"parallel__tensor": 2, "parallel__pipeline": 2, **SGD}),
            (MIDDLE, {"parallel__tensor": 2, "parallel__data": 2, "engine__zero_stage": 3, **SGD}),
            (LAST, {"parallel__pipeline": 2, "parallel__data": 2}),
            (LAST, {"parallel__tensor": 2, "parallel__data": 2, "engine__zero_stage": 1, **EXPERTS, **SGD}),
        ],
        tmp_path,
    )


def test_a_checkpoint_resumes_in_other_layouts(tmp_path: Path) -> None:
    cut = config(LAST, parallel__data=2, engine__zero_stage=3)
    run_ranks(2, save_all_on_rank, [(cut, tmp_path)], 2, 0)
    figures, _ = expected(cut, LAST)
    others = ({"parallel__pipeline": 2}, {"parallel__tensor": 2}, {"parallel__data": 2, "engine__zero_stage": 1})
    jobs = [(config(LAST, run__seed=99, **changes), tmp_path) for changes in others]
    for found in run_ranks(2, resume_all_on_rank, jobs, 2, STEPS - 2)[0]:
        assert found == [pytest.approx(row, rel=1e-5) for row in figures[2:]]


@pytest.mark.parametrize(
    "name", ["adafactor", "adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lion", "muon", "sgd"))]
)
def test_optimizers_keep_nothing_of_what_is_frozen(name: str, tmp_path: Path) -> None:
    changes = {"optimizer__name": name, "optimizer__momentum": 0.5, "parallel__data": 2, "engine__zero_stage": 3}
    case = config(LAST, **changes)
    after = run_ranks(2, save_all_on_rank, [(case, tmp_path)], 2, 1)[0]
    assert run_ranks(2, resume_all_on_rank, [(case, tmp_path)], 2, 1)[0] == after
    checkpoint = newest_intact(tmp_path)
    for tensor in checkpoint.names:
        assert (len(checkpoint.kinds(tensor)) > 1) == is_trained(LAST)(tensor), tensor


def test_rates_by_layer(tmp_path: Path) -> None:
    """Against torch's AdamW with a group for each rate."""
    changes = {"finetune__layer_lr_decay": 0.5, "finetune__embedding_lr_factor": 0.1}
    rates = {"blocks.1.": 0.5, "blocks.0.": 0.25, "embedding.": 0.0125, "positions.": 0.0125, "norm.": 1.0}
    case = config("all", **changes, parallel__data=2, engine__zero_stage=2)
    after = run_ranks(2, save_all_on_rank, [(case, tmp_path)], 0, STEPS)[0][0]

    def make(named: Named, _: RunConfig) -> list[torch.optim.Optimizer]:
        groups: list[dict[str, Any]] = []
        for name, parameter in named:
            [rate] = [rate for begin, rate in rates.items() if name.startswith(begin)]
            decay = 0.1 if parameter.dim() == 2 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "lr_scale": rate})
        return [torch.optim.AdamW(groups, lr=1.0, betas=case.optimizer.betas, eps=case.optimizer.eps)]

    assert after == [pytest.approx(row, rel=1e-5) for row in plain_torch(case, STEPS, make)[0]]


def test_a_bf16_run_saves_what_it_started_from(tmp_path: Path) -> None:
    for ranks, changes in ((1, ALONE), (2, {"parallel__data": 2, "engine__zero_stage": 3})):
        folder = tmp_path / str(ranks)
        check(ranks, [(LAST, {**BF16, **changes, **SGD})], folder, tolerance=3e-2)
