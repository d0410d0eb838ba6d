"""Noticing that the scheduler wants the machine back."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptionFlag:
    """Set when SIGTERM or SIGUSR1 arrives; the loop saves and leaves at the next step. Use as a context manager."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionFlag:
        for number in PREEMPTION_SIGNALS:
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
