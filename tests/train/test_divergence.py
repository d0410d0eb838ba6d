"""Runs whose gradient is no number any more."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, run

DIVERGES = ("optimizer.lr=1e30", "optimizer.clip=0", "checkpoint.interval=1")
EVALUATED = ("data.holdout=0.05", "evaluation.interval=4")
WARNING = "warning: the gradient of step 2 is not finite (loss nan), so the step is skipped"
SAID = (
    "llmscale: 20 consecutive steps, from step 2 on, had a non-finite gradient, so that no update was applied; lower"
    " optimizer.lr (1e+30) or set optimizer.clip (0: none) in a new run.directory, from an earlier checkpoint"
    " (train.init_from=run/checkpoints/step-00000001)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_run(tmp_path)
    return tmp_path


def strictly(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"JSON has no {name}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_that_learns_nothing_ends(folder: Path, dtype: str) -> None:
    done = run("train", "config.yaml", *DIVERGES, "train.steps=100", f"engine.dtype={dtype}", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == SAID
    assert done.stderr.count("warning: ") == done.stderr.count(WARNING) == 1
    # What was saved last is from before.
    assert [path.name for path in (folder / "run/checkpoints").glob("step-*")] == ["step-00000001"]
    rows = [strictly(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses.keys() == set(range(1, 22))
    assert [step for step, loss in losses.items() if loss is not None] == [1]
    assert json.loads((folder / "run/outcome.json").read_text())["outcome"] == "failed"
    report = run("report", "run", cwd=folder)
    assert (report.returncode, report.stderr) == (0, "")


def test_a_short_one_is_not_done(folder: Path) -> None:
    done = run("train", "config.yaml", *DIVERGES, "train.steps=8", *EVALUATED, cwd=folder)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(WARNING) == 1
    assert "step 4: held-out loss nan, perplexity nan, nan bits per byte" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "llmscale: step 8 was the last one, but every step from 2 on had a non-finite gradient, so that it is not saved"
        f" and the run is not done; {SAID.partition(' applied; ')[2]}"
    )
    assert json.loads((folder / "run/outcome.json").read_text())["outcome"] == "failed"
    assert [path.name for path in (folder / "run/checkpoints").glob("step-*")] == ["step-00000001"]
    assert not (folder / "run/summary.json").exists()
    report = run("report", "run", cwd=folder)
    assert (report.returncode, report.stderr) == (0, "")
    assert "nan" not in (folder / "run/report/report.html").read_text().partition("</style>")[2].partition("<h2>Set")[0]
    assert json.loads(run("eval", "run", "--data", "text-0.txt", "--json", cwd=folder).stdout)["loss"] is None


def test_ranks_end_together(folder: Path) -> None:
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        Command("train", "config.yaml", *DIVERGES, "train.steps=100", cwd=folder, RANK=rank, LOCAL_RANK=rank, **place)
        for rank in range(2)
    ]
    lead, other = (command.finish() for command in both)
    assert (lead.returncode, lead.stderr.splitlines()[-1]) == (2, SAID)
    assert (other.returncode, other.stderr) == (2, "")


@pytest.mark.slow
def test_fp16_may_look_for_its_scale(folder: Path) -> None:
    """2^32 is far beyond fp16: the first steps are skipped until halving has come to what it can hold."""
    fp16 = ("engine.dtype=fp16", "engine.initial_scale_power=32", "train.steps=40")
    done = run("train", "config.yaml", *fp16, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert json.loads((folder / "run/summary.json").read_text())["skipped_steps"] > 10
    lost = run("train", "config.yaml", *fp16, *DIVERGES, "run.directory=lost", "train.steps=200", cwd=folder)
    assert lost.returncode == 2, lost.stderr
    assert "warning: the gradient of step" in lost.stderr
    assert "llmscale: 53 consecutive steps, from step " in lost.stderr.splitlines()[-1]
