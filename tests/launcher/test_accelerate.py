"""The Accelerate config that is shipped, with the real `accelerate launch`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in_rank.py")


def start(folder, behaviour):
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", str(ROOT / "configs/accelerate/cpu.yaml")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [*launch, *config, str(STAND_IN), behaviour, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_meet(tmp_path):
    process = start(tmp_path, "sum")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(2)] == ["3.0", "3.0"]


@pytest.mark.parametrize("behaviour", ["exit-2", "exit-75"])
def test_every_code_of_a_rank_becomes_1(tmp_path, behaviour):
    """Documented in docs/guide/cluster.md: under Accelerate, outcome.json tells what happened."""
    process = start(tmp_path, behaviour)
    process.communicate(timeout=120)
    assert process.returncode == 1


def test_sigterm_reaches_the_ranks_in_time_to_save(tmp_path):
    process = start(tmp_path, "save")
    ready = [tmp_path / f"rank-{rank}.json" for rank in range(2)]
    end = time.monotonic() + 60
    while not all(file.exists() for file in ready):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == ["SIGTERM", "SIGTERM"], output
    assert process.returncode == 1
    assert not any(Path(f"/proc/{json.loads(file.read_text())['pid']}").exists() for file in ready)
