"""Ranks of a real training that hang: named in time, ended, and started again."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.bombs import STOP, launch, plant
from tests.tiny_run import losses, write_tiny_run

LIMIT = 5
SETTINGS = ("config.yaml", "train.global_batch=12", "data.lanes=12", f"recovery.hang_seconds={LIMIT}")
pytestmark = pytest.mark.slow
NODE = socket.gethostname()
READS_FOR_EVER = """
import sys
from data_pipeline.loader import TrainLoader
take = TrainLoader.take

def hang(self, *arguments):
    time.sleep(600)

TrainLoader.take = hang""".replace("\n", "\n        ")


def hang(folder: Path, rank: int, deed: str) -> tuple[int, str, dict[str, Any], float]:
    """Exit code, stderr and outcome of a run of three ranks of which one hangs, and how long it took to be named."""
    write_tiny_run(folder)
    site = plant(folder, rank, deed, [8])
    process = launch(folder, "--nproc", 3, *SETTINGS, "train.steps=100000", "checkpoint.interval=4", site=site)
    _, errors = process.communicate(timeout=240)
    outcome = folder / "run/outcome.json"
    took = outcome.stat().st_mtime - (folder / "marks/0").stat().st_mtime
    return process.returncode, errors, json.loads(outcome.read_text()), took


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_within_twice_the_time_out_and_all_end(tmp_path, rank):
    code, errors, outcome, took = hang(tmp_path, rank, STOP)
    assert code == 76, errors
    assert took < 2 * LIMIT
    assert (outcome["outcome"], outcome["hung"]) == ("failed", [rank])
    named = f"rank {rank} on {NODE} gives no answer (it is stopped, or its machine hangs)"
    assert named in outcome["reason"]
    assert errors.count(named) == 1
    assert "Traceback" not in errors
    assert outcome["checkpoint"] % 4 == 0 < outcome["checkpoint"]
    for other in {0, 1, 2} - {rank}:
        log = (tmp_path / f"run/logs/rank-{other:05d}.log").read_text()
        assert f"the Python stacks of rank {other}" in log
        assert 'llmscale/train/loop.py", line ' in log, "where it waits"


def test_a_rank_that_reads_for_ever_is_named_with_what_it_does(tmp_path):
    code, errors, outcome, _ = hang(tmp_path, 2, READS_FOR_EVER)
    assert code == 76, errors
    assert outcome["hung"] == [2]
    assert f"rank 2 on {NODE} is in reading its samples of step" in errors
    assert "rank(s) 0-1 are in adding up the targets of all ranks of step" in errors


def test_a_run_that_hung_is_started_again_and_ends_as_if_it_had_not(tmp_path):
    write_tiny_run(tmp_path)
    settings = (*SETTINGS, "train.steps=30", "checkpoint.interval=4")
    calm = launch(tmp_path, "--nproc", 3, *settings, "run.directory=calm")
    assert calm.wait(timeout=240) == 0, calm.communicate()[1]
    calm.communicate()
    site = plant(tmp_path, 1, STOP, [12])
    process = launch(tmp_path, "--nproc", 3, "--restarts", 2, *settings, site=site)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors.count("gives no answer") == 1
    assert "restart 1 of 2, from the checkpoint of step" in errors
    assert losses(tmp_path / "run") == losses(tmp_path / "calm")
