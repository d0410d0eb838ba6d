"""`llmscale eval` that is killed at any instant goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.evaluate.models import write_checkpoint, write_tasks
from tests.train.forked import Command, Finished, free_port

ITEMS = {"llama": 2500, "bert": 800, "t5": 1200, "experts": 1500}
"""Of each family: enough for several lines' worth of windows in which it can be killed."""


class Started:
    """`llmscale eval` on so many ranks."""

    def __init__(self, model: Path, task: Path, output: Path, ranks: int = 1) -> None:
        words = ("eval", model, "--tasks", task, "--output", output, "--device", "cpu")
        world = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        places = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)] if ranks > 1 else [{}]
        self._commands = [Command(*words, cwd=output.parent, **place) for place in places]

    def runs(self) -> bool:
        return self._commands[0].process.is_alive()

    def kill(self) -> None:
        for command in self._commands:
            command.signal(signal.SIGKILL)
        assert [each.returncode for each in self.finish()] == [-signal.SIGKILL] * len(self._commands)

    def finish(self) -> list[Finished]:
        return [command.finish() for command in self._commands]


def _lines(output: Path) -> Path | None:
    return next(output.glob("*/items.jsonl"), None)


def _killed(process: Started, output: Path, size: int, delay: float) -> int:
    """Kill it some time after its lines have grown to a size; returns what they then have."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.runs():
        lines = _lines(output)
        if lines is not None and lines.stat().st_size >= size:
            break
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    lines = _lines(output)
    return 0 if lines is None else lines.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "ranks", "kills"),
    [("llama", 1, 5), ("bert", 1, 3), ("t5", 1, 3), ("experts", 1, 3), ("bert", 2, 2), ("t5", 2, 2), ("experts", 2, 2)],
)
def test_an_evaluation_killed_at_any_instant_ends_with_the_same_bytes(
    family: str, ranks: int, kills: int, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model", family)
    task = write_tasks(tmp_path / "tasks", items=ITEMS[family])["likelihood"]
    (whole,) = Started(model, task, tmp_path / "whole").finish()  # on one rank, whatever is killed afterwards
    assert whole.returncode == 0, whole.stderr
    expected = _lines(tmp_path / "whole").read_bytes()  # type: ignore[union-attr]
    assert expected.count(b"\n") == ITEMS[family]
    draw = random.Random(8)
    output = tmp_path / "out"
    reached = [0]
    for part in sorted(draw.random() for _ in range(kills)):
        process = Started(model, task, output, ranks)
        reached.append(_killed(process, output, int(0.8 * part * len(expected)), draw.uniform(0, 0.1)))
        assert reached[-2] <= reached[-1] < len(expected)  # whole lines are not made again
    assert len(set(reached)) >= kills - 1  # most in the middle
    last, *others = Started(model, task, output, ranks).finish()
    assert [each.returncode for each in (last, *others)] == [0] * ranks, last.stderr
    assert "of them done before" in last.stderr
    assert _lines(output).read_bytes() == expected  # type: ignore[union-attr]
