"""Nothing is lost: killed, preempted or finished, a run continues as if nothing had happened, to the bit."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.forked import Command
from tests.train.forked import run as llmscale
from tests.train.runs import evaluations, ledger, metrics

STEPS = 60
SETTINGS = (f"train.steps={STEPS}", "checkpoint.interval=7", "evaluation.interval=10", "data.holdout=0.1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_tiny_run(folder)
    done = llmscale("train", "config.yaml", *SETTINGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def wait_for_steps(run: Path, count: int, seconds: float = 120) -> None:
    """Until the ledger has `count` rows of the newest attempt."""
    deadline = time.monotonic() + seconds
    path = run / "ledger.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{run} did not reach {count} ledger rows")


def assert_same_run(run: Path, reference: Path) -> None:
    assert len(metrics(run)) == STEPS
    assert metrics(run) == metrics(reference)
    assert ledger(run) == ledger(reference)
    assert evaluations(run) == evaluations(reference)


@pytest.mark.slow
def test_killed_at_five_random_points(tmp_path: Path, uninterrupted: Path) -> None:
    write_tiny_run(tmp_path)
    run = tmp_path / "run"
    draw = random.Random(0)
    killed_at = []
    for _ in range(5):
        rows = (run / "ledger.jsonl").read_bytes().count(b"\n") if (run / "ledger.jsonl").exists() else 0
        process = Command("train", "config.yaml", *SETTINGS, cwd=tmp_path)
        # Somewhere between this start's first step, which the row that marks the start is not, and about a quarter of
        # the run later, then a random instant more.
        wait_for_steps(run, rows + draw.randint(2, STEPS // 4))
        time.sleep(draw.random() * 0.05)
        process.signal(signal.SIGKILL)
        assert process.finish().returncode == -signal.SIGKILL
        killed_at.append(ledger(run)[-1][0])
    done = llmscale("train", "config.yaml", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 0, (killed_at, done.stderr)
    assert_same_run(run, uninterrupted)
    assert json.loads((run / "outcome.json").read_text())["attempt"] == 6
    assert not list((run / "checkpoints").glob(".tmp*"))


def test_preempted_then_continued(tmp_path: Path, uninterrupted: Path) -> None:
    write_tiny_run(tmp_path)
    run = tmp_path / "run"
    for number, steps in ((signal.SIGTERM, 5), (signal.SIGUSR1, 20)):
        process = Command("train", "config.yaml", *SETTINGS, cwd=tmp_path)
        wait_for_steps(run, steps)
        process.signal(number)
        stopped = process.finish()
        outcome = json.loads((run / "outcome.json").read_text())
        assert (stopped.returncode, outcome["outcome"]) == (75, "preempted"), stopped.stderr
        assert "Traceback" not in stopped.stderr
        # Saved where it stopped: nothing has to be trained again.
        assert (run / "checkpoints" / f"step-{outcome['step']:08d}").is_dir()
        assert ledger(run)[-1][0] == outcome["step"]
    assert llmscale("train", "config.yaml", *SETTINGS, cwd=tmp_path).returncode == 0
    assert_same_run(run, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, uninterrupted: Path) -> None:
    write_tiny_run(tmp_path)
    run = tmp_path / "run"
    process = Command("train", "config.yaml", *SETTINGS, cwd=tmp_path)
    wait_for_steps(run, 24)
    process.signal(signal.SIGKILL)
    process.finish()
    newest = max((run / "checkpoints").glob("step-*"))
    weights = newest / "rank-00000.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    done = llmscale("train", "config.yaml", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name}/rank-00000.safetensors is damaged" in done.stderr
    assert_same_run(run, uninterrupted)


def test_a_finished_run_says_so(uninterrupted: Path) -> None:
    before = (uninterrupted / "ledger.jsonl").read_bytes()
    again = llmscale("train", "config.yaml", *SETTINGS, cwd=uninterrupted.parent)
    assert again.returncode == 0
    assert "is finished" in again.stderr
    assert (uninterrupted / "ledger.jsonl").read_bytes() == before


def test_layout_may_change_between_starts(tmp_path: Path, uninterrupted: Path) -> None:
    """Another stage, micro batch and number of workers from the checkpoint on: the same samples, losses as near as
    rounding allows."""
    write_tiny_run(tmp_path)
    run = tmp_path / "run"
    process = Command("train", "config.yaml", *SETTINGS, cwd=tmp_path)
    wait_for_steps(run, 30)
    process.signal(signal.SIGTERM)
    process.finish()
    at = json.loads((run / "outcome.json").read_text())["step"]
    changed = ("engine.zero_stage=3", "train.micro_batch=8", "data.workers=2", "logging.interval=1")
    done = llmscale("train", "config.yaml", *SETTINGS, *changed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ledger(run) == ledger(uninterrupted)
    for step, (_, loss, norm) in enumerate(metrics(run), start=1):
        _, expected_loss, expected_norm = metrics(uninterrupted)[step - 1]
        tolerance = 0 if step <= at else 1e-5 if step <= at + 5 else 1e-4
        assert loss == pytest.approx(expected_loss, rel=tolerance)
        assert norm == pytest.approx(expected_norm, rel=10 * tolerance)


def test_constant_schedule_may_be_extended(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    flat = "schedule.name=constant"
    assert llmscale("train", "config.yaml", "train.steps=6", flat, cwd=tmp_path).returncode == 0
    assert llmscale("train", "config.yaml", "train.steps=12", flat, cwd=tmp_path).returncode == 0
    longer = tmp_path / "longer"
    at_once = llmscale("train", "config.yaml", "train.steps=12", flat, f"run.directory={longer}", cwd=tmp_path)
    assert at_once.returncode == 0, at_once.stderr
    assert metrics(tmp_path / "run") == metrics(longer)


def test_init_from_starts_anew_with_trained_weights(tmp_path: Path, uninterrupted: Path) -> None:
    write_tiny_run(tmp_path)
    done = llmscale(
        "train", "config.yaml", "train.steps=3", SETTINGS[-1], f"train.init_from={uninterrupted}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first = metrics(tmp_path / "run")[0]
    # The samples of step 1 again, at the loss of a model that has been trained for a while.
    assert ledger(tmp_path / "run")[0] == ledger(uninterrupted)[0]
    assert first[1] < metrics(uninterrupted)[0][1] - 0.5
