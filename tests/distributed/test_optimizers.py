"""Optimizers that need whole tensors, through the trainer: preempted on one layout, finished on another."""

import signal
from pathlib import Path
from typing import Any

import pytest

from llmscale.train.start import PREEMPTED
from tests.distributed.cases import Case, case_config, run_cases, write_corpus
from tests.train.runs import evaluations, metrics

SETTINGS: dict[str, dict[str, Any]] = {
    "adafactor": {"optimizer__lr": 0.05, "optimizer__momentum": 0.9},
    "muon": {"optimizer__lr": 0.02, "optimizer__adamw_lr": 0.003},
}


def cases(folder: Path, run: str, stage: int, stop: Any = None) -> list[Case]:
    return [
        Case(
            case_config(folder, f"{run}-{name}", optimizer__name=name, engine__zero_stage=stage, **settings),
            few_targets=True,
            stop=stop,
        )
        for name, settings in SETTINGS.items()
    ]


def test_preempted_under_zero_3_then_finished_under_zero_1(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert run_cases(1, cases(tmp_path, "whole", stage=1)) == [[0, 0]]
    preempted = cases(tmp_path, "moved", stage=3, stop=(3, 1, signal.SIGTERM))
    assert run_cases(2, preempted) == [[PREEMPTED, PREEMPTED]] * 2
    assert run_cases(4, cases(tmp_path, "moved", stage=1)) == [[0, 0]] * 4
    for name in SETTINGS:
        whole, moved = tmp_path / f"whole-{name}", tmp_path / f"moved-{name}"
        assert len(metrics(whole)) == 6
        assert metrics(moved) == [pytest.approx(row, rel=1e-5) for row in metrics(whole)], name
        assert evaluations(moved) == [pytest.approx(row, rel=1e-5) for row in evaluations(whole)], name
