"""Runs that release 0.1 made go on as that release would have gone on: old folders stay readable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.base.records import read_records
from llmscale.checkpoint.model import load_model
from llmscale.config import load_config
from tests.kept_runs.cases import CASES, write_case
from tests.train.forked import run

KEPT = Path(__file__).parent / "0.1"
ROUNDING = 2e-5
"""Most relative difference of a loss between processors."""


@pytest.mark.parametrize("name", CASES)
def test_a_kept_run_goes_on_to_the_same_end(name: str, tmp_path: Path) -> None:
    kept = KEPT / name
    write_case(name, tmp_path)
    shutil.copytree(kept / "run", tmp_path / "run")
    done = run("train", str(kept / "config.yaml"), "train.steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing at step 8" in done.stderr
    rows, expected = (read_records(path) for path in (tmp_path / "run/metrics.jsonl", kept / "whole-metrics.jsonl"))
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    for row, wanted in zip(rows, expected, strict=True):
        if "loss" in row:
            assert row["loss"] == pytest.approx(wanted["loss"], rel=ROUNDING), row["step"]
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=100 * ROUNDING), row["step"]
    went, wanted = (
        {row["step"]: row["sum"] for row in read_records(path) if row["step"]}
        for path in (tmp_path / "run/ledger.jsonl", kept / "whole-ledger.jsonl")
    )
    assert went == wanted
    assert len(went) == 12


@pytest.mark.parametrize("name", CASES)
def test_a_kept_checkpoint_and_config_are_read(name: str) -> None:
    trained = load_model(KEPT / name / "run")
    assert sum(parameter.numel() for parameter in trained.model.parameters()) > 1000
    assert load_config(KEPT / name / "run/config.yaml").model == load_config(KEPT / name / "config.yaml").model
