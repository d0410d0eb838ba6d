"""Noticing that the scheduler wants the machine back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from llmscale.distributed.ranks import shown_rank

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75
"""Exit code after a preemption signal: saved, or nothing to save yet; run me again."""
REPEAT_SECONDS = 1.0
"""A signal that comes again sooner is the same one: a scheduler sends it to all processes, and launchers pass it on."""


class PreemptionFlag:
    """Set when SIGTERM or SIGUSR1 arrives; the loop saves and leaves at the next step. Use as a context manager.

    The process ends at once where no step would come: between `expect_no_step` and the first `poll`, and when the same
    signal arrives a second time. A thread sees to that, since Python's own handlers wait while the main thread is in a
    library's code, as it is where ranks wait for each other.
    """

    def __init__(self) -> None:
        self.raised = False
        self._polled = True
        self._others = False
        self._first: dict[int, float] = {}
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionFlag:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        for number in PREEMPTION_SIGNALS:
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._writing)  # which ends the thread

    def expect_no_step(self, others: bool) -> None:
        """From here to the first `poll` a signal ends the process at once: there is nothing to save yet.

        Args:
            others: whether to wait for other ranks, which may never come; a signal of before ends this rank here.

        Raises:
            SystemExit: with code 75, as said.
        """
        self._polled, self._others = False, others
        if others and self.raised:
            sys.exit(PREEMPTED)

    def poll(self) -> bool:
        """Whether to save and leave; once asked, signals wait for the next time."""
        self._polled = True
        return self.raised

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.raised = True

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                self._judge(number)
        os.close(reading)

    def _judge(self, number: int) -> None:
        if number not in (*PREEMPTION_SIGNALS, signal.SIGINT):
            return
        now = time.monotonic()
        repeated = now - self._first.setdefault(number, now) > REPEAT_SECONDS
        # Ctrl-C is an exception wherever the main thread runs Python, which it does not while ranks wait.
        unheard = not self._polled and (self._others or number != signal.SIGINT)
        if repeated or unheard:
            when = "a second time" if repeated else "before the first step"
            rank = shown_rank()
            who = f"rank {rank}: " if rank else ""
            text = f"llmscale: {who}ended by {signal.Signals(number).name} {when}; the same command goes on\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
            os._exit(128 + signal.SIGINT if number == signal.SIGINT else PREEMPTED)


def _leave_to_parent() -> None:
    """A forked worker shares the pipe, but its signals are not the parent's."""
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)
