"""How far something is that takes a while, and how long it will still take."""

from __future__ import annotations

import time

from data_pipeline.base.terminal import tell

_SECONDS = 2.0
"""Between lines."""


class Progress:
    """Says it on stderr, of one task after the other."""

    def __init__(self, shown: bool = True, noun: str = "items") -> None:
        """`noun`: what a task has many of."""
        self._shown = shown
        self._noun = noun
        self._task = ""
        self._began = self._said = 0.0
        self._first = 0

    def __call__(self, task: str, done: int, items: int) -> None:
        """Of the `items` of a task so many are done."""
        if not self._shown:
            return
        now = time.monotonic()
        if task != self._task:
            self._task, self._began, self._first, self._said = task, now, done, now
            begun = f", {done:,} of them done before" if done else ""
            tell(f"{task}: {items:,} {self._noun}{begun}")
            return
        if done < items and now - self._said < _SECONDS:
            return
        self._said = now
        left = (now - self._began) / max(done - self._first, 1) * (items - done)
        tell(f"{task}: {done:,}/{items:,}" + (f", {left:,.0f} s left" if done < items else ""))
