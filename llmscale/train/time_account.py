"""What this attempt spends its time on, and the rows of time.jsonl that say so."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from data_pipeline.base.records import RecordWriter
from llmscale.report.goodput import ACTIVITIES, OTHER, START_UP, SUBMITTED
from llmscale.train.callbacks.base import Callback
from llmscale.train.run_directory import RunDirectory
from llmscale.train.state import StepResult, TrainState

ROW_SECONDS = 60.0
"""Between two rows at most, so that what a killed run had done is known to the minute."""


class TimeAccount:
    """Seconds of this attempt by activity, from the start of its process on."""

    def __init__(self, began: float | None = None) -> None:
        """`began`: when the process of this attempt started, in seconds since the epoch; now when not given."""
        self.began = time.time() if began is None else began
        self._spent = dict.fromkeys(ACTIVITIES, 0.0)

    def spend(self, activity: str, seconds: float) -> None:
        """Count seconds to an activity."""
        self._spent[activity] += seconds

    @contextlib.contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Count what the block takes to an activity."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spend(activity, time.perf_counter() - started)

    def started(self) -> None:
        """The first step comes now: all time until here was start-up."""
        self._spent[START_UP] = max(0.0, time.time() - self.began)

    def seconds(self) -> dict[str, float]:
        """By activity; what is counted to none is `other`."""
        rest = max(0.0, time.time() - self.began - sum(self._spent.values()))
        return {**self._spent, OTHER: self._spent[OTHER] + rest}


class TimeKeeper(Callback):
    """Writes the account with each checkpoint, every minute, and when it is closed. Rank 0 has a writer."""

    def __init__(self, account: TimeAccount, writer: RecordWriter | None) -> None:
        self._account, self._writer = account, writer
        self._step = 0
        self._saved = -1
        self._due = 0.0

    def on_start(self, state: TrainState) -> None:
        self._step = state.step
        self._write(resumes=True)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self._step = state.step
        if state.saved != self._saved or time.monotonic() > self._due:
            self._saved = state.saved
            self._write()

    def close(self) -> None:
        """The last row of this attempt, however it ends."""
        with contextlib.suppress(OSError):  # a full disk has a sentence already
            self._write()

    def _write(self, **more: Any) -> None:
        self._due = time.monotonic() + ROW_SECONDS
        if self._writer is not None:
            spent = {name: round(seconds, 3) for name, seconds in self._account.seconds().items()}
            self._writer.write({"step": self._step, "time": time.time(), "seconds": spent, **more})


def begin_record(run: RunDirectory, attempt: int, account: TimeAccount, before: float | None, ranks: int) -> None:
    """Write the first row of an attempt: where and when it began.

    Args:
        before: the run's last sign of life until then; None where it is new, which began when it was submitted.
    """
    if before is not None:  # a process that trains again has begun long before
        account.began = max(account.began, min(before, time.time()))
    else:
        with contextlib.suppress(ValueError):
            before = float(os.environ.get(SUBMITTED, ""))
    row = {
        "step": 0,
        "time": time.time(),
        "began": account.began,
        "before": account.began if before is None else min(before, account.began),
        "job": os.environ.get("SLURM_JOB_ID"),
        "node": socket.gethostname(),
        "ranks": ranks,
    }
    with RecordWriter(run.time, attempt) as writer:
        writer.write(row)
