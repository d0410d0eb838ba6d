"""`launch local --restarts`: which failures are followed by another start, and what it continues with."""

import json
import signal
from pathlib import Path

import pytest

from data_pipeline.base.records import RecordWriter
from launcher.restarts import MOST_IDLE_FAILURES, Restarts
from llmscale.train.run_directory import RunDirectory
from tests.launcher.bombs import KILL, launch, plant
from tests.launcher.test_launched_training import wait_until
from tests.tiny_run import losses, write_tiny_run


def train_to(run: RunDirectory, attempt: int, first: int, last: int) -> None:
    """What an attempt leaves that trained steps `first` + 1 to `last`."""
    with RecordWriter(run.ledger, attempt, continues=first) as ledger:
        for step in range(first + 1, last + 1):
            ledger.write({"step": step})


def test_restarts_are_bounded(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    allowed = Restarts(run, 2)
    answers = []
    for attempt in range(1, 4):
        train_to(run, attempt, 10 * attempt - 10, 10 * attempt)
        answers.append(allowed.again(1))
    assert answers == [True, True, False]
    said = capsys.readouterr().err
    assert "restart 1 of 2, from step 0, since none was saved" in said
    assert "all 2 restarts are used" in said


@pytest.mark.parametrize("code", [0, 2, 75])
def test_what_is_no_failure_is_not_followed_by_a_restart(tmp_path, code):
    assert not Restarts(RunDirectory(tmp_path), 5).again(code)


def test_a_crash_loop_stops_itself_with_the_reason(tmp_path, capsys):
    """The same step fails again and again, although each start trains the steps since the checkpoint anew."""
    run = RunDirectory(tmp_path)
    allowed = Restarts(run, 100)
    train_to(run, 1, 0, 57)
    assert allowed.again(1), "the first failure came after new steps"
    for attempt in range(2, 2 + MOST_IDLE_FAILURES):
        train_to(run, attempt, 50, 57)
        run.record_outcome("failed", attempt=attempt, reason="rank 1 was killed")
        again = allowed.again(1)
    assert not again
    reason = run.outcome()["reason"]
    assert reason.startswith("rank 1 was killed; no restart: 3 failures in a row came before any step after step 57")
    assert reason.partition("; ")[2] in capsys.readouterr().err


def test_steps_of_before_the_launch_are_no_progress(tmp_path):
    run = RunDirectory(tmp_path)
    train_to(run, 1, 0, 9)
    allowed = Restarts(run, 100)
    answers = []
    for attempt in range(2, 5):
        train_to(run, attempt, 0, 9)
        answers.append(allowed.again(1))
    assert answers == [True, True, False]


@pytest.mark.slow
def test_a_run_whose_ranks_are_killed_ends_as_if_nothing_had_happened(tmp_path):
    write_tiny_run(tmp_path)
    settings = ("train.steps=40", "checkpoint.interval=8")
    calm = launch(tmp_path, "--nproc", 2, "config.yaml", "run.directory=calm", *settings)
    assert calm.wait(timeout=240) == 0, calm.communicate()[1]
    calm.communicate()
    site = plant(tmp_path, 1, KILL, [15, 35])
    process = launch(tmp_path, "--nproc", 2, "--restarts", 3, "config.yaml", *settings, site=site)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert losses(tmp_path / "run") == losses(tmp_path / "calm")
    assert json.loads((tmp_path / "run/outcome.json").read_text())["attempt"] == 3
    assert errors.count("was killed by signal 9") == 2
    assert "restart 2 of 3, from the checkpoint of step" in errors


@pytest.mark.slow
def test_ranks_that_fail_at_their_start_are_not_started_for_ever(tmp_path):
    write_tiny_run(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os\nif os.environ.get('RANK') == '1':\n    os._exit(9)\n")
    process = launch(tmp_path, "--nproc", 2, "--restarts", 50, "config.yaml", site=site)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 9, errors
    assert errors.count(": restart ") == 2
    assert "3 failures in a row" in errors


@pytest.mark.slow
def test_a_preempted_run_is_not_started_again(tmp_path: Path):
    write_tiny_run(tmp_path)
    process = launch(tmp_path, "--nproc", 2, "--restarts", 3, "config.yaml", "train.steps=100000")
    wait_until(lambda: len(losses(tmp_path / "run")) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "restart" not in errors
