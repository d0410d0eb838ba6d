"""Records that cannot be used as they are: counted by reason and noted by place, or an error at once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from data_pipeline.base.errors import UserError

NOTED = 1000
"""Most bad records that are noted between two calls of `take`; all are counted."""
COUNTED_BYTES = 1 << 30
"""Most bytes that are gone through to find a line number."""
EMPTY = "empty"
"""The one reason to drop a record that does not make it a bad one."""
REPAIRED = "invalid UTF-8 replaced"
"""A reason for which a bad record is kept: its invalid bytes are U+FFFD."""
SURROGATES = "lone surrogates replaced"
"""Another: an escape of JSON that is half of a character is U+FFFD."""
FILLED = "absent field filled"
"""A default was used, which does not make a record a bad one."""
KEPT = (REPAIRED, SURROGATES, FILLED)
"""The reasons that are counted of records that are kept."""
DAMAGED = "compressed file is damaged"
"""The one bad record that stands for many: all that come behind it in its file are lost."""
VERSION = 2
"""Of what is made of odd records. Before 2, JSON with lone surrogates or numbers beyond double precision was none, and
no row had a carriage return outside of quotes."""
_FILES_NAMED = 3


class BadRecord(NamedTuple):
    """A record that was left out or repaired."""

    reason: str
    """As counted in `Corpus.dropped`."""
    path: str
    line: int | None
    """Line of the file, from 1; None where the file has no lines, or the line is over 1 GiB away from a known one."""
    row: int | None
    """Row of a table or example of a shard, from 0; None where the file has none."""
    position: int
    """Byte offset (after decompression), row or example."""
    detail: str
    """What is wrong with it; may be empty."""

    @property
    def place(self) -> str:
        """`path:line`, or the path with row or byte."""
        if self.line is not None:
            return f"{self.path}:{self.line}"
        return f"{self.path} (row {self.row})" if self.row is not None else f"{self.path} (byte {self.position})"


class BadRecords:
    """Counts and notes bad records, or raises an error at the first."""

    def __init__(self, dropped: Counter[str], policy: str = "skip") -> None:
        """
        Args:
            dropped: gets a count by reason, bad or empty.
            policy: skip or fail.
        """
        self.dropped = dropped
        self.fail = policy == "fail"
        self.noted: list[BadRecord] = []
        self.count = 0
        """Bad records so far."""
        self.records_read = 0
        self.version = VERSION
        """A run keeps the one that it began with, so that its samples stay what they are."""
        self.by_file: dict[str, Counter[str]] = {}
        """Bad records by path and reason."""
        self.losses: dict[str, str] = {}
        """What is known of each damaged file."""
        self._taken = (0, 0)

    @property
    def wants_place(self) -> bool:
        """Whether the next record is noted, so that its line number is worth finding."""
        return self.fail or len(self.noted) < NOTED

    def note(
        self,
        reason: str,
        path: str,
        position: int,
        detail: str = "",
        *,
        lines: LineNumbers | None = None,
        row: int | None = None,
    ) -> None:
        """A bad record; `lines` finds its line number. Raises UserError when the policy is to fail."""
        self.dropped[reason] += 1
        self.count += 1
        self.by_file.setdefault(path, Counter())[reason] += 1
        if reason == DAMAGED:
            self.losses[path] = detail
        if not self.wants_place and reason != DAMAGED:
            return
        line = lines.at(position) if lines is not None else None
        bad = BadRecord(reason, path, line, row, position, detail)
        if self.fail:
            more = f" ({detail})" if detail else ""
            raise UserError(f"{bad.place}: {reason}{more}; repair the file, or set data.on_bad_record to skip")
        self.noted.append(bad)

    def take_counts(self) -> BadCounts:
        """What was wrong since the last call, or since `forget`."""
        records, bad = self.records_read - self._taken[0], self.count - self._taken[1]
        found = BadCounts(records, bad, {path: dict(counts) for path, counts in self.by_file.items()}, self.losses)
        self._taken, self.by_file, self.losses = (self.records_read, self.count), {}, {}
        return found

    def forget(self) -> None:
        """Be as new, but for the policy."""
        self.dropped.clear()
        self.noted.clear()
        self.count = self.records_read = 0
        self._taken, self.by_file, self.losses = (0, 0), {}, {}

    def take(self) -> list[BadRecord]:
        """The bad records noted since the last call."""
        taken, self.noted[:] = list(self.noted), []
        return taken


@dataclass
class BadCounts:
    """What was wrong with the records of some files, as JSON can hold it."""

    records: int = 0
    """Records read, good and bad ones."""
    bad: int = 0
    by_file: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bad records by path and reason."""
    losses: dict[str, str] = field(default_factory=dict)
    """What is known of each damaged file, by path."""

    def add(self, other: BadCounts) -> None:
        """Add what was wrong with others."""
        self.records += other.records
        self.bad += other.bad
        for path, counts in other.by_file.items():
            self.by_file[path] = dict(Counter(self.by_file.get(path, {})) + Counter(counts))
        self.losses.update(other.losses)

    def warnings(self, threshold: float, more: str = "") -> list[str]:
        """Sentences about each damaged file, and about the records where more than the fraction `threshold` of them are
        bad; `more` says where they are listed."""
        said = [f"warning: {loss_text(path, detail)}" for path, detail in sorted(self.losses.items())]
        rate = self.bad / max(1, self.records)
        if rate > threshold:
            reasons: Counter[str] = Counter()
            for counts in self.by_file.values():
                reasons.update(counts)
            worst = sorted(self.by_file, key=lambda path: (-sum(self.by_file[path].values()), path))
            files = "; ".join(f"{path}: {by_reason(self.by_file[path])}" for path in worst[:_FILES_NAMED])
            others = f"; and {len(worst) - _FILES_NAMED} more files" if len(worst) > _FILES_NAMED else ""
            said.append(
                f"warning: {self.bad:,} bad records among {self.records:,} ({rate:.1%}; data.bad_record_warning is"
                f" {threshold:.1%}): {by_reason(reasons)} ({files}{others}){more}"
            )
        return said


def loss_text(path: str, detail: str) -> str:
    """A sentence about a damaged file."""
    return f"{path} is {detail}; restore the file"


def by_reason(counts: Mapping[str, int]) -> str:
    """Counts as a text, by reason: "3 empty, 1,204 invalid JSON"; empty for none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


class ByteSource(Protocol):
    """The bytes of a file after decompression."""

    def fetch(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer only at the end."""
        ...


class LineNumbers:
    """Line numbers of byte offsets in one file, counted from the nearest place known before."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._known = [(0, 1)]

    def at(self, position: int) -> int | None:
        """The number, from 1, of the line that holds a byte; None where more than 1 GiB would have to be read."""
        place, line = self._known[bisect_left(self._known, (position + 1, 0)) - 1]
        if position - place > COUNTED_BYTES:
            return None
        while place < position:
            data = self._source.fetch(place, min(1 << 20, position - place))
            if not data:
                break
            line += data.count(b"\n")
            place += len(data)
        known = (position, line)
        if self._known[-1] < known:
            self._known.append(known)
        else:
            insort(self._known, known)
        return line
