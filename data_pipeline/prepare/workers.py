"""Independent tasks on several processes of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from data_pipeline.base.errors import UserError

POLL_SECONDS = 0.2

Report = Callable[[int, int], None]
"""Takes the bytes and tokens done since its last call."""
Task = Callable[[int, Report], None]
"""Does one task by number, reporting as it goes."""


def run_tasks(tasks: Sequence[int], processes: int, open_task: Callable[[], Task], progress: Report) -> None:
    """Run all tasks, each once, on whichever process is free. Returns when all are done.

    Args:
        tasks: numbers of the tasks.
        processes: how many to start; with 1, or one task, the tasks run in this process.
        open_task: called once in each process for what runs its tasks.
        progress: called every 0.2 s or so with the bytes and tokens done since its last call.

    Raises:
        UserError, OSError: what a task raised; the others are stopped.
        RuntimeError: a process ended for another reason.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        report = _Paced(progress)
        task = open_task() if tasks else None
        for number in tasks:
            assert task is not None
            task(number, report)
        report.flush()
        return
    # Newer Pythons have another default, with which each process would read the config and list the files again.
    context = multiprocessing.get_context("fork")
    next_task = context.Value(ctypes.c_int64, 0)
    # One pair of numbers a process: no lock, and nothing to drain when a process is killed.
    done = context.Array(ctypes.c_int64, 2 * processes, lock=False)
    workers: list[BaseProcess] = []
    ends: list[multiprocessing.connection.Connection] = []
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for slot in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (tasks, next_task, open_task, done, slot, sender, os.getpid())
            worker: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            sender.close()
            workers.append(worker)
            ends.append(receiver)
        _wait(workers, ends, done, progress)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _wait(
    workers: list[BaseProcess], ends: list[multiprocessing.connection.Connection], done: Any, progress: Report
) -> None:
    seen = [0, 0]
    running = dict(enumerate(workers))
    while running:
        multiprocessing.connection.wait([worker.sentinel for worker in running.values()], POLL_SECONDS)
        now = [sum(done[0::2]), sum(done[1::2])]
        progress(now[0] - seen[0], now[1] - seen[1])
        seen = now
        for slot, worker in list(running.items()):
            if worker.is_alive():
                continue
            del running[slot]
            worker.join()
            with contextlib.suppress(EOFError):
                if ends[slot].poll():
                    raise ends[slot].recv()
            if worker.exitcode:
                raise RuntimeError(_obituary(worker.exitcode))


def _obituary(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        cause = " (out of memory?)" if name == "SIGKILL" else ""
        return (
            f"a process was ended by {name}{cause}; start the command again to go on, with fewer processes if need be"
        )
    return f"a process failed with exit code {code}, for the reason above; start the command again to go on"


def _work(
    tasks: Sequence[int],
    next_task: Any,
    open_task: Callable[[], Task],
    done: Any,
    slot: int,
    sender: multiprocessing.connection.Connection,
    parent: int,
) -> None:
    """What a worker process does."""
    # Ctrl-C goes to the whole process group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def report(size: int, tokens: int) -> None:
        done[2 * slot] += size
        done[2 * slot + 1] += tokens
        if os.getppid() != parent:
            os._exit(1)  # a killed parent takes no notice of us; what is done has its marker

    try:
        task = open_task()
        while True:
            with next_task.get_lock():
                place = next_task.value
                next_task.value += 1
            if place >= len(tasks):
                return
            task(tasks[place], report)
    except (UserError, OSError) as error:
        sender.send(error)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class _Paced:
    """Gathers reports and passes them on every 0.2 s."""

    def __init__(self, progress: Report) -> None:
        self._progress = progress
        self._size = self._tokens = 0
        self._last = time.monotonic()

    def __call__(self, size: int, tokens: int) -> None:
        self._size += size
        self._tokens += tokens
        if time.monotonic() - self._last >= POLL_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._progress(self._size, self._tokens)
        self._size = self._tokens = 0
        self._last = time.monotonic()
