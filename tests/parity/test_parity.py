"""`llmscale parity`: equal layouts are found equal, a wrong gradient is found, and mistakes are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from llmscale.cli import cli
from llmscale.layout.text import parse_layout
from llmscale.parallel import layers
from llmscale.parity import compare as comparing
from llmscale.parity.compare import ALONE, prepared
from llmscale.parity.job import Figures, gradient_difference, run_layout
from llmscale.parity.ranks import run_ranks
from tests.parity.cases import family
from tests.systems.published import TWINS


def run_without_sums(config: Any, steps: int, gradients: Path) -> Figures:
    """As `run_layout`, but each rank forgets what the others make of the gradient of what enters a feed-forward
    layer."""
    entering = layers.ShardedFeedForward.forward
    layers.ShardedFeedForward.forward = layers.FeedForward.forward  # type: ignore[assignment, method-assign]
    try:
        return run_layout(config, steps, gradients, False)
    finally:
        layers.ShardedFeedForward.forward = entering  # type: ignore[method-assign]


def test_a_gradient_that_is_not_summed_over_the_ranks_is_found(tmp_path: Path) -> None:
    config, layout = family("llama3_8b"), parse_layout("tp=2")
    one = prepared(config, ALONE, "sgd", tmp_path / "one", clip=0.5)
    reference = run_ranks(1, run_layout, one, 2, tmp_path, True)[0]
    two = prepared(config, layout, "sgd", tmp_path / "two", clip=0.5)
    found = run_ranks(2, run_without_sums, two, 2, tmp_path)[0]
    verdict = comparing._judge(layout, "sgd", reference, found, "fp32")
    assert not verdict.within
    assert verdict.gradient > 0.01
    assert verdict.parameter != ""
    assert verdict.same_samples


def test_others_run_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed:(?s:.*)boom"):
        run_ranks(2, fail_on_rank_one)
    assert run_ranks(2, doubled, 4) == [8, 8]


def test_ranks_that_hang_are_noticed() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[0, 1\] of 2 hang"):
        run_ranks(2, sleep_long, timeout=3)
    assert run_ranks(1, doubled, 3) == [6]


def fail_on_rank_one() -> int:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("boom")
    return 0


def sleep_long() -> None:
    import time

    time.sleep(600)


def doubled(number: int) -> int:
    return 2 * number


def test_gradients_are_compared_by_parameter() -> None:
    expected = {"large": torch.full((4,), 10.0), "small": torch.full((4,), 0.1), "none": torch.zeros(4)}
    norm = (4 * 100 + 4 * 0.01) ** 0.5
    assert gradient_difference(expected, expected)[0] == 0
    found = {**expected, "small": torch.full((4,), 0.11)}
    assert gradient_difference(found, expected) == (pytest.approx(0.1, rel=1e-5), "small")
    # What is truly 0 counts as a thousandth of the whole.
    found = {**expected, "none": torch.full((4,), 1e-4)}
    assert gradient_difference(found, expected) == (pytest.approx(2e-4 / (1e-3 * norm), rel=1e-5), "none")
    assert gradient_difference({"large": expected["large"]}, expected)[0] == float("inf")
    assert gradient_difference({**expected, "large": torch.full((4,), torch.nan)}, expected) == (float("inf"), "large")


def test_the_command_prints_a_verdict_for_each_layout_and_optimizer() -> None:
    small = ["train.global_batch=4", "train.batch_ramp=null", "model.layers=1", "model.hidden_size=64"]
    wanted = ["--layouts", "tp=2", "zero=3,dp=2", "--steps", "2", "--json"]
    result = CliRunner().invoke(cli, ["parity", str(TWINS / "gpt_neox_20b.yaml"), *small, "model.heads=4", *wanted])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [(row["layout"], row["optimizer"], row["ranks"]) for row in rows] == [
        ("tp=2", "sgd", 2),
        ("zero=3,dp=2", "sgd", 2),
        ("tp=2", "adamw", 2),
        ("zero=3,dp=2", "adamw", 2),
    ]
    assert all(row["within"] and row["same_samples"] for row in rows)


@pytest.mark.parametrize(("twin", "relu"), [("t5_11b", True), ("qwen3_8b", False)])
def test_a_difference_of_a_relu_is_put_in_doubt(twin: str, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding alone is a difference where nothing is tolerated."""
    monkeypatch.setitem(comparing.GRADIENT_TOLERANCE, "fp32", 0.0)
    command = ["parity", str(TWINS / f"{twin}.yaml"), "--layouts", "dp=2", "--steps", "1", "--optimizer", "sgd"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert ("A ReLU whose input is 0 but for rounding" in result.output) == relu


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "parity needs --layouts"),
        (["--layouts", "xp=2"], "'xp=2' is not one of dp=.., tp=.."),
        (["--layouts", "tp=two"], "parallel.tensor is 'two', but it is a number of ranks"),
        (["--layouts", "tp=2,engine.nonsense=1"], "there is no setting engine.nonsense"),
        (["--layouts", "tp=2,optimizer.lr=1"], "'optimizer.lr=1' is not one of"),
        (["--layouts", "tp=2", "tp=5"], "layout tp=5: "),
        (["--layouts", "dp=3"], "layout dp=3: "),
    ],
)
def test_mistakes_are_explained_before_anything_runs(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["parity", str(TWINS / "gpt3_175b.yaml"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "one process" not in result.stderr
