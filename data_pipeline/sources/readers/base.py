"""What every reader takes and gives: spans, blocks of records, and a bounded set of open things."""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from data_pipeline.base.errors import UserError
from data_pipeline.sources.files import FileEntry

BLOCK_BYTES = 1 << 16
"""Bytes that a reader takes from a file at once, and about the text of one block."""
ENDLESS = 1 << 62
"""End of a span whose file does not say how much it holds: compressed files, shards of data sets."""

K = TypeVar("K")
V = TypeVar("V")


class Span(NamedTuple):
    """A part of a file: the unit that is dealt to a lane."""

    file: int
    """Index of the file in the corpus."""
    start: int
    """First position: a byte, a row of the file, or an example of the shard."""
    stop: int
    """Position after the last; ENDLESS where only reading tells."""
    size: int
    """Bytes, to weigh spans with."""


class Record(NamedTuple):
    """A document and its position in the file."""

    position: int
    text: str
    target: str | None = None


class Block:
    """Consecutive records by column."""

    def __init__(
        self,
        texts: list[str],
        positions: list[int] | Callable[[], list[int]],
        next_position: int | None,
        targets: list[str] | None = None,
        values: list[dict[str, Any]] | None = None,
    ) -> None:
        self.texts = texts
        self.targets = targets
        """Second texts of pairs; None where the source has none."""
        self.values = values
        """Values of the source's other fields; None where it names none."""
        self.next_position = next_position
        """Where to go on; None at the end of the span."""
        self._positions = positions

    @functools.cached_property
    def positions(self) -> list[int]:
        """Where each record begins. Found when first asked for: some callers only want texts."""
        return self._positions() if callable(self._positions) else self._positions

    @property
    def records(self) -> list[Record]:
        """The same by row."""
        return list(map(Record, self.positions, self.texts, self.targets or itertools.repeat(None)))


def no_records(next_position: int | None) -> Block:
    """A block without records."""
    return Block([], [], next_position)


class Reader(Protocol):
    """Reads spans of one source. Not shared between processes."""

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        """Records from the first that starts at or after `position` and within the span.

        Raises:
            UserError: the file cannot be read, or a record is bad and the policy says fail.
        """
        ...

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        ...


class RecentlyUsed(Generic[K, V]):
    """Values up to a total weight; the one unused for longest is closed first. The newest always stays."""

    def __init__(self, limit: int, close: Callable[[V], Any] = lambda value: None) -> None:
        self._limit = limit
        self._close = close
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """The value of a key, which is the most recent one from now on; None where there is none."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, weight: int = 1) -> V:
        """Add a value as the most recent one and give it back."""
        self.take(key)
        self._values[key] = value, weight
        self._weight += weight
        while self._weight > self._limit and len(self._values) > 1:
            oldest, weight = self._values.popitem(last=False)[1]
            self._weight -= weight
            self._close(oldest)
        return value

    def take(self, key: K) -> V | None:
        """Remove the value of a key without closing it; None where there is none."""
        found = self._values.pop(key, None)
        if found is None:
            return None
        self._weight -= found[1]
        return found[0]

    def close(self) -> None:
        """Close all values."""
        while self._values:
            self._close(self._values.popitem()[1][0])
        self._weight = 0


def unreadable(path: str, error: Exception | str) -> UserError:
    """The error of a file that cannot be read at all, for whatever reason."""
    reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
    if isinstance(error, FileNotFoundError):  # of which remote file systems say nothing but the path
        reason = os.strerror(errno.ENOENT)
    return UserError(f"cannot read {path}: {reason.splitlines()[0]}; repair it or exclude it")
