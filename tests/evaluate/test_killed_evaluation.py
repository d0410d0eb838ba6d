"""`llmscale eval` that is killed at any instant goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.evaluate.models import write_checkpoint, write_tasks
from tests.train.forked import Command

ITEMS = 2500


def _started(model: Path, task: Path, output: Path) -> Command:
    return Command("eval", model, "--tasks", task, "--output", output, "--device", "cpu", cwd=output.parent)


def _lines(output: Path) -> Path | None:
    return next(output.glob("*/items.jsonl"), None)


def _killed(process: Command, output: Path, size: int, delay: float) -> int:
    """Kill it some time after its lines have grown to a size; returns what they then have."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.process.is_alive():
        lines = _lines(output)
        if lines is not None and lines.stat().st_size >= size:
            break
        time.sleep(0.001)
    time.sleep(delay)
    process.signal(signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL
    lines = _lines(output)
    return 0 if lines is None else lines.stat().st_size


@pytest.mark.slow
def test_an_evaluation_killed_at_any_instant_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", "llama")
    task = write_tasks(tmp_path / "tasks", items=ITEMS)["likelihood"]
    whole = _started(model, task, tmp_path / "whole")
    assert whole.finish().returncode == 0
    expected = _lines(tmp_path / "whole").read_bytes()  # type: ignore[union-attr]
    assert expected.count(b"\n") == ITEMS
    draw = random.Random(8)
    output = tmp_path / "out"
    reached = [0]
    for part in sorted(draw.random() for _ in range(5)):
        process = _started(model, task, output)
        reached.append(_killed(process, output, int(0.8 * part * len(expected)), draw.uniform(0, 0.1)))
        assert reached[-2] <= reached[-1] < len(expected)  # whole lines are not made again
    assert len(set(reached)) >= 4  # most in the middle
    last = _started(model, task, output).finish()
    assert last.returncode == 0, last.stderr
    assert "of them done before" in last.stderr
    assert _lines(output).read_bytes() == expected  # type: ignore[union-attr]
