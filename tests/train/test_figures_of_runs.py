"""MFU, figures by rank, and the account of the wall time, of real runs."""

import contextlib
import io
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.base.records import read_records
from llmscale.config import parse_config
from llmscale.distributed.process_group import World, join, leave, read_world
from llmscale.plan.hardware import hardware_of
from llmscale.train.rank_extremes import RankExtremes
from llmscale.train.utilisation import utilisation_of
from tests.ranks import run_ranks
from tests.tiny_run import write_tiny_run
from tests.train.runs import llmscale, start


def test_mfu_is_that_of_palms_appendix_b():
    """6 N + 12 L H Q T operations a token: N weights in products, L layers, H heads of Q channels, T tokens."""
    layers, hidden, heads, length, vocab = 3, 64, 4, 32, 300
    config = parse_config(
        {
            "run": {"directory": "x"},
            "data": {"sources": [{"paths": ["x"]}], "sequence_length": length},
            "model": {"layers": layers, "hidden_size": hidden, "heads": heads, "vocab_multiple": 1},
            "logging": {"peak_flops": 2e9},
        }
    )
    world = World(0, 4, 0, 4, torch.device("cpu"))
    found = utilisation_of(config, vocab, torch.float32, world)
    products = layers * (4 * hidden**2 + 2 * hidden * 4 * hidden) + hidden * vocab
    token = 6 * products + 12 * layers * hidden * length
    assert found.mfu(samples=10, seconds=2.5) == pytest.approx(10 * length * token / 2.5 / (4 * 2e9))


def test_a_cpu_without_a_known_peak_has_no_mfu():
    config = parse_config({"run": {"directory": "x"}, "data": {"sources": [{"paths": ["x"]}]}})
    found = utilisation_of(config, 300, torch.float32, World(0, 1, 0, 1, torch.device("cpu")))
    assert (found.peak, found.mfu(10, 1.0)) == (None, None)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets_and_no_guesses(device, peak):
    row = hardware_of(device)
    assert (None if row is None else row.peak(2)) == peak


def _gather(slow: int, rows: int) -> tuple[list[dict[str, Any]], str]:
    """What a rank knows, and what it says."""
    world = read_world("cpu")
    join(world)
    seconds = 0.5 if world.rank == slow else 0.1
    with contextlib.redirect_stderr(io.StringIO()) as said:
        extremes = RankExtremes(torch.device("cpu"))
        extremes.meet()
        found = [extremes.gather(data_seconds=0.01 * world.rank, forward_seconds=seconds) for _ in range(rows)]
    leave()
    return found, said.getvalue()


def test_the_slowest_rank_is_named_and_told_of_once():
    everyone, words = zip(*run_ranks(3, _gather, 1, 5), strict=True)
    assert everyone[0] == everyone[1] == everyone[2]
    row = everyone[0][0]
    forward = row["forward_seconds"]
    assert (forward["rank"], forward["median"], forward["most"]) == (1, 0.1, 0.5)
    assert row["data_seconds"]["rank"] == 2
    assert row["memory_bytes"]["most"] > 1 << 20
    said = "".join(words)
    assert said.count("warning: rank 1 on ") == 1
    assert "takes for its forward passes 0.5 s a step, where the median of 3 ranks is 0.1 s" in said
    assert "rank 2" not in said


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_records(run / "metrics.jsonl") if "loss" in row]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_the_account_of_a_killed_and_continued_run_adds_up(tmp_path):
    write_tiny_run(tmp_path)
    settings = ("train.steps=60", "checkpoint.interval=10", "logging.peak_flops=1e11")
    process = start("launch", "local", "--nproc", "2", "config.yaml", *settings, cwd=tmp_path)
    wait_until((tmp_path / "run/logs/rank-00001.log").exists, process)
    began = time.time()
    wait_until((tmp_path / "run/checkpoints/step-00000010").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(2)
    done = llmscale("launch", "local", "--nproc", "2", "config.yaml", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    goodput = json.loads((tmp_path / "run/summary.json").read_text())["goodput"]
    seconds = goodput["seconds"]
    assert goodput["attempts"] == 2
    assert seconds["waiting"] >= 2
    assert seconds["start_up"] > seconds["checkpoint"] > 0
    wall = sum(seconds.values())
    ended = (tmp_path / "run/summary.json").stat().st_mtime
    assert wall == pytest.approx(ended - began, abs=1)
    assert goodput["fraction"] == pytest.approx(seconds["compute"] / wall, abs=1e-3)
    row = rows_of(tmp_path / "run")[-1]
    assert 0 < row["mfu"] < 1
    assert row["peak_flops"] == 1e11
    assert set(row["ranks"]) == {"data_seconds", "forward_seconds", "memory_bytes"}
    listed = json.loads(llmscale("runs", "run", "--json", cwd=tmp_path).stdout)
    assert (listed["state"], listed["step"], listed["restarts"]) == ("done", 60, 1)
