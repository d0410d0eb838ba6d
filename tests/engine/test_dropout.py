"""Dropout through the engine: the same losses on any layout and after a resume, and none outside of training."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llmscale.config import RunConfig
from llmscale.distributed.process_group import join, leave, read_world
from tests.engine.cases import (
    STEPS,
    case_config,
    global_batch,
    one_step,
    open_engine,
    plain_torch,
    resume_on_rank,
    save_on_rank,
    train_on_rank,
)
from tests.ranks import run_ranks

TOLERANCE = 1e-5
RATES = {"model__dropout": 0.2, "model__attention_dropout": 0.2}
SGD = {"optimizer__name": "sgd", "optimizer__lr": 0.05}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "t5": {"model__family": "t5", "model__encoder_layers": 1, "model__init_scheme": "normal"},
}


def config(model: str, **changes: Any) -> RunConfig:
    return case_config(**MODELS[model], **RATES, **SGD, **changes)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_losses_and_norms_are_those_of_any_other_layout(ranks: int) -> None:
    """Beside a plain loop, which gives the model the whole batch; clipping is active."""
    cuts = {1: (8, 3), 2: (1, 4), 4: (1, 2)}[ranks]
    cases = [
        (model, config(model, engine__zero_stage=stage, train__micro_batch=micro))
        for stage, micro in [(1, cuts[0]), (1, cuts[1]), (2, cuts[0]), (3, cuts[1])]
        for model in MODELS
    ]
    (expected_t5,) = run_ranks(1, train_on_rank, [config("t5", train__micro_batch=8)])[0]
    expected = {"gpt2": plain_torch(config("gpt2"))[0], "t5": expected_t5}
    assert all(norm > case_config().optimizer.clip for _, norm in expected["gpt2"])
    for rank in run_ranks(ranks, train_on_rank, [case for _, case in cases]):
        for found, (model, case) in zip(rank, cases, strict=True):
            assert len(found) == STEPS
            assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected[model]], (model, case.engine)
    without, _ = plain_torch(case_config(**SGD))
    assert max(abs(a[0] - b[0]) for a, b in zip(expected["gpt2"], without, strict=True)) > 100 * TOLERANCE


def test_a_resume_drops_the_same_to_the_bit(tmp_path: Path) -> None:
    case = config("gpt2", train__micro_batch=2)
    (saved,) = {tuple(rank) for rank in run_ranks(2, save_on_rank, case, tmp_path, 2, 3)}
    for rank in run_ranks(2, resume_on_rank, case, [tmp_path], 2, 3):
        assert [tuple(figures) for figures in rank] == [saved]


def test_a_kernel_s_own_dropout_repeats_on_the_same_layout_only() -> None:
    cases = [config("gpt2", engine__dropout_layout_free="false", train__micro_batch=micro) for micro in (2, 4)]
    first, again = run_ranks(2, train_on_rank, cases), run_ranks(2, train_on_rank, cases)
    assert first == again
    two, four = first[0]
    assert abs(two[-1][0] - four[-1][0]) > 1e-4
    hashed = run_ranks(2, train_on_rank, [config("gpt2")])[0][0]
    assert abs(two[0][0] - hashed[0][0]) > 1e-4


def test_evaluation_drops_nothing_and_the_log_tells_of_the_layout() -> None:
    for losses, warnings in run_ranks(1, evaluate_on_rank, config("gpt2", engine__dropout_layout_free="false")):
        assert losses[0] == losses[1]
        assert warnings == [
            "engine.dropout_layout_free is false and model.attention_dropout is 0.2: losses depend on ranks and micro"
            " batch"
        ]


def evaluate_on_rank(case: RunConfig) -> tuple[list[float], list[str]]:
    """The loss of a batch that evaluation gives after a step of training, and without any rate; what was logged."""
    warnings: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("llmscale").addHandler(Keeper(logging.WARNING))
    join(read_world("cpu"))
    engine, grid = open_engine(case)
    one_step(engine, grid, 0)
    batch = global_batch(1)
    found = [engine.loss(batch)]
    with torch.no_grad():
        module = engine._engine.module
        found.append(float(module.loss(module.model, batch)[0]))
    leave()
    return found, warnings
