"""Killed at any instant, a run has its last committed checkpoint, whole."""

import multiprocessing
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import tests.ranks  # noqa: F401 - the parent of all test processes has imported torch
from llmscale.checkpoint import clean, find_checkpoints, newest_intact
from tests.checkpoint.cases import assert_holds, save_for_ever, save_until_operation, saved

_context = multiprocessing.get_context("forkserver")


def start(function: Any, *arguments: Any) -> tuple[Any, Connection]:
    """A process, and where its reports come in."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=function, args=(*arguments, sender))
    process.start()
    sender.close()
    return process, receiver


def reports(receiver: Connection) -> list[int]:
    """Everything that a dead process had reported."""
    found = []
    try:
        while True:
            found.append(receiver.recv())
    except EOFError:
        return found


def test_killed_before_each_file_operation(tmp_path: Path) -> None:
    """Saving 3, and 3 again, over a committed step 2, keeping one: stopped at each operation in turn."""
    steps = [3, 3]
    saved(tmp_path / "0", 2)
    limit = 0
    survived = False
    while not survived:
        limit += 1
        directory = tmp_path / str(limit)
        shutil.copytree(tmp_path / "0", directory)
        process, receiver = start(save_until_operation, directory, steps, limit)
        committed = [2, *reports(receiver)]
        process.join()
        survived = process.exitcode == 0
        assert survived or process.exitcode == -signal.SIGKILL
        checkpoint = newest_intact(directory)
        assert checkpoint.step >= committed[-1]
        assert_holds(checkpoint, checkpoint.step)
        clean(directory)
        assert_holds(newest_intact(directory), checkpoint.step)
        assert not list(directory.glob(".tmp-*"))
        assert not list(directory.glob("*.replaced"))
    assert limit > 30


@pytest.mark.parametrize("world", [1, 3])
def test_killed_at_random_instants(tmp_path: Path, world: int) -> None:
    """One run, killed again and again while it saves and deletes, goes on from what it finds each time."""
    instants = random.Random(world)
    saved(tmp_path, 0)
    step = 0
    for _ in range(12):
        clean(tmp_path)
        started = [start(save_for_ever, tmp_path, step + 1, rank, world) for rank in range(world)]
        committed = [receiver.recv() for _, receiver in started]
        begun = time.monotonic()
        waited_for = instants.randint(1, 3)
        committed += [started[0][1].recv() for _ in range(waited_for)]
        time.sleep(instants.uniform(0, 2) * (time.monotonic() - begun) / waited_for)
        for process, _ in instants.sample(started, world):
            process.kill()
        committed += [reported for _, receiver in started for reported in reports(receiver)]
        for process, _ in started:
            process.join()
        checkpoint = newest_intact(tmp_path)
        assert checkpoint.step >= max(committed)
        assert_holds(checkpoint, checkpoint.step, world if checkpoint.step else 1)
        assert len(find_checkpoints(tmp_path)) <= 3
        step = checkpoint.step
    assert step >= 12
