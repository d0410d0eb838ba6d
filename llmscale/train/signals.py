"""Noticing that the scheduler wants the machine back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from types import FrameType
from typing import Any

from llmscale.distributed.exit_codes import PREEMPTED
from llmscale.distributed.ranks import shown_rank

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP comes when the terminal is closed; where it is ignored already, as under nohup, it stays so."""
REPEAT_SECONDS = 1.0
"""A signal that comes again sooner is the same one: a scheduler sends it to all processes, and launchers pass it on."""


class Phase(Enum):
    """What a signal finds the process doing, and what it then does."""

    STARTING = auto()
    """Noted; a second one ends the process at once."""
    UNSAVED = auto()
    """No step of this start is done, so that there is nothing to save: it ends the process at once."""
    TRAINING = auto()
    """Noted, for the loop to save and leave at the next step; a second one ends the process at once."""
    SAVING = auto()
    """Noted, however often it comes, since the checkpoint is on its way to the disk."""
    SAVED = auto()
    """All steps are saved, and what is left can be done again: it ends the process at once."""
    OVER = auto()
    """The exit code stands; nothing happens any more."""


class PreemptionFlag:
    """Set when a preemption signal arrives; what follows depends on the phase. Use as a context manager.

    A thread looks at signals too, since Python's own handlers wait while the main thread is in a library's code, as it
    is where ranks wait for each other or something is compiled.
    """

    def __init__(self, last: bool = False) -> None:
        """`last`: the process ends with the block: later signals are ignored and do not change its exit code."""
        self.raised = False
        self.polls = 0
        """How often the process has looked, which it does between parts of what takes long."""
        self.last_words: Callable[[], object] | None = None
        """Called before the process is ended at once by a preemption signal; whatever it raises is ignored."""
        self._last = last
        self._phase = Phase.STARTING
        self._others = False
        self._number = 0
        self._first: dict[int, float] = {}
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionFlag:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        for number in PREEMPTION_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        self._phase = Phase.OVER
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._writing)  # which ends the thread

    def enter(self, phase: Phase) -> None:
        """Say what the process does from here on, which a signal of just before may end."""
        self._phase = phase
        if phase is Phase.SAVED and self.raised:
            self._judge(self._number)

    def expect_no_step(self, others: bool) -> None:
        """From here to the end of the first step a signal ends the process at once: there is nothing to save yet.

        Args:
            others: whether to wait for other ranks, which may never come; a signal of before ends this rank here.

        Raises:
            SystemExit: with code 75, as said.
        """
        self._phase, self._others = Phase.UNSAVED, others
        if others and self.raised:
            sys.exit(PREEMPTED)

    def stepped(self) -> None:
        """A step is done, so that there is something to save."""
        if self._phase is Phase.UNSAVED:
            self._phase = Phase.TRAINING

    def poll(self) -> bool:
        """Whether to save and leave."""
        self.polls += 1
        return self.raised

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.raised, self._number = True, number

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                self._judge(number)
        os.close(reading)

    def _judge(self, number: int) -> None:
        if number not in (*PREEMPTION_SIGNALS, signal.SIGINT) or self._phase is Phase.OVER:
            return
        now = time.monotonic()
        repeated = now - self._first.setdefault(number, now) > REPEAT_SECONDS
        when = None
        if number == signal.SIGINT:
            # Ctrl-C is an exception wherever the main thread runs Python, which it does not while ranks wait.
            if self._phase is Phase.UNSAVED and self._others:
                when = "before the first step"
            elif repeated:
                when = "a second time"
        elif self._phase is Phase.UNSAVED:
            when = "before the first step"
        elif self._phase is Phase.SAVED:
            when = "after the last step, which is saved"
        elif repeated and self._phase is not Phase.SAVING:
            when = "a second time"
        if when is not None:
            self._end(number, when)

    def _end(self, number: int, when: str) -> None:
        rank = shown_rank()
        who = f"rank {rank}: " if rank else ""
        text = f"llmscale: {who}ended by {signal.Signals(number).name} {when}; the same command goes on\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        if number == signal.SIGINT:
            os._exit(128 + number)
        if self.last_words is not None:
            with contextlib.suppress(Exception):
                self.last_words()
        os._exit(PREEMPTED)


def _leave_to_parent() -> None:
    """A forked worker shares the pipe, but its signals are not the parent's."""
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)
