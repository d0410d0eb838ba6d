"""`llmscale checkpoint verify --reload`: a checkpoint loads in a layout to the bit, and what does not is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmscale.checkpoint.reader import newest_intact
from llmscale.cli import cli
from llmscale.config import RunConfig, parse_config
from llmscale.layout.text import parse_layout
from llmscale.parity import reload as reloading
from llmscale.parity.ranks import run_ranks
from tests.distributed.cases import Case, case_config, run_cases, write_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on two ranks that share their matrices."""
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder)
    config = case_config(folder, "run", train__steps=3, parallel__tensor=2, evaluation__interval=0)
    assert run_cases(2, [Case(config)]) == [[0], [0]]
    return folder / "run"


@pytest.mark.parametrize("layout", ["dp=2,zero=3", "pp=2,dp=2", "cp=2,tp=1"])
def test_a_checkpoint_loads_to_the_bit(run: Path, layout: str) -> None:
    result = CliRunner().invoke(cli, ["checkpoint", "verify", str(run), "--reload", layout])
    assert result.exit_code == 0, result.output
    intact, loaded = result.stdout.splitlines()
    assert "is intact: step 3" in intact
    checkpoint = newest_intact(run)
    elements = sum(checkpoint.full(name).numel() for name in checkpoint.names)
    assert f"loads in layout {layout} on" in loaded
    assert f"{elements:,} of exp_avg, {elements:,} of exp_avg_sq, {elements:,} of weight are what was saved" in loaded


def reload_badly(path: str, config: RunConfig) -> Any:
    """As `reload_on_rank`, but the state stays as it was at the start."""
    loading = reloading.restore
    reloading.restore = lambda *_: None
    try:
        return reloading.reload_on_rank(path, config)
    finally:
        reloading.restore = loading


def test_what_is_not_loaded_is_found(run: Path) -> None:
    checkpoint = newest_intact(run)
    config = parse_layout("dp=2,zero=2").of(parse_config({**checkpoint.manifest.config, "parallel": {}}))
    _, problem = run_ranks(2, reload_badly, str(checkpoint.path), config)[1]
    assert problem.startswith("exp_avg of ")
    assert "has other values on rank" in problem


def test_a_layout_that_cannot_be_is_refused(run: Path) -> None:
    result = CliRunner().invoke(cli, ["checkpoint", "verify", str(run), "--reload", "tp=3"])
    assert result.exit_code == 2
    assert "layout tp=3: parallel.tensor (3) must divide model.heads (2)" in result.stderr
