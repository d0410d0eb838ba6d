"""Append-only JSON lines with attempts: written by one process, read whatever instant it died at."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from bisect import bisect_right
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from data_pipeline.base.durable import parse_json, read_file, unlinked
from data_pipeline.base.errors import writing

_START = "continues"
"""Marks the row that an attempt starts with."""
_CHECK = "check"
"""CRC-32 of the rest of a row, by which a damaged one is told from a whole one. Rows of before have none."""


class RecordWriter:
    """Appends rows to a JSON-lines file, each with the number of the attempt (the start of the run) that wrote it.

    A row is in the operating system's hands when `write` returns. A tail that a dead writer left torn is closed
    with a newline first, so it can spoil no row but its own.
    """

    def __init__(self, path: str | Path, attempt: int, continues: int | None = None) -> None:
        """Opens `path` for appending, creating it and its folder; raises OSError where that fails.

        Args:
            attempt: number of this start of the run; a later start has a larger one.
            continues: the step that this attempt continues from. A row that says so is written at once, and from
                then on earlier attempts' rows of later steps do not count.
        """
        self.path = Path(path)
        self.attempt = attempt
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+", buffering=0, opener=unlinked)  # noqa: SIM115
        self._torn = self._ends_torn()
        if continues is not None:
            self.write({"step": continues, _START: True})

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, with null where a number is not finite.

        Raises OSError (a full disk, say) that names the file, and a later call may try again.
        """
        whole = strict({**row, "attempt": self.attempt})
        text = json.dumps({**whole, _CHECK: _checksum(whole)}, ensure_ascii=False, allow_nan=False)
        # A file name that is not UTF-8 holds lone surrogates, which JSON can only escape.
        line = text.encode(errors="backslashreplace") + b"\n"
        data = memoryview(b"\n" + line if self._torn else line)
        self._torn = True
        with writing(self.path):
            while data:
                data = data[self._file.write(data) :]
        self._torn = False

    def close(self) -> None:
        """Close the file; rows are written already."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ends_torn(self) -> bool:
        size = self._file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        self._file.seek(size - 1)
        return self._file.read(1) != b"\n"


def strict(value: Any) -> Any:
    """A JSON value with None for each number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: strict(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The rows that count, in the order of steps (rows of one step in the order they were written).

    A run that resumes writes again what came after its checkpoint. So earlier attempts' rows of steps beyond the one
    that a later attempt continued from are left out, even those the later attempt has not reached yet. An attempt
    that did not say where it continued from replaces all from its first row's step on.
    Several rows of one step by one attempt (training and evaluation) are all kept. Lines that are torn, damaged, not
    JSON, or without `step` and `attempt` are left out. A missing file has no rows.
    """
    return read_counted_records(path)[0]


def read_counted_records(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """`read_records`, and how many lines were left out as damaged or of another kind; a line that is still being
    written does not count."""
    rows, damaged = _whole_rows(path)
    return _counted(rows), damaged


def read_every_record(path: str | Path) -> list[dict[str, Any]]:
    """Every intact row as it was written and in that order, those that later attempts have replaced too; a row of
    "continues" is one of them. A missing file has none."""
    return _whole_rows(path)[0]


def newest_record(path: str | Path, having: str, window: int = 1 << 16) -> dict[str, Any] | None:
    """The last intact row that has `having`, from the end of the file, however long it is; None without one.

    Args:
        having: a key that the row must have.
        window: bytes at the end of the file that are looked at first; all of it where they hold no such row.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=_readable) as file:
        size = file.seek(0, os.SEEK_END)
        for start in {max(0, size - window): None, 0: None}:
            file.seek(start)
            lines = file.read().split(b"\n")
            for row in map(_parse, reversed(lines[1:] if start else lines)):
                if row is not None and having in row and _counts(row) and _is_intact(row):
                    return {name: value for name, value in row.items() if name != _CHECK}
    return None


def _is_intact(row: dict[str, Any]) -> bool:
    rest = {name: value for name, value in row.items() if name != _CHECK}
    return _CHECK not in row or row[_CHECK] == _checksum(rest)


def _readable(path: str | Path, flags: int) -> int:
    """Opens without waiting for the writer of a pipe, which then has no rows."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept_until: dict[int, float] = {}
    said = {row["attempt"]: row["step"] for row in rows if _START in row}
    for row in rows:
        until = said.get(row["attempt"], row["step"] - 1)
        kept_until[row["attempt"]] = min(kept_until.get(row["attempt"], until), until)
    ends: dict[int, float] = {}
    end = float("inf")
    for attempt in sorted(kept_until, reverse=True):
        ends[attempt] = end
        end = min(end, kept_until[attempt])
    counted = (row for row in rows if _START not in row and row["step"] <= ends[row["attempt"]])
    return sorted(counted, key=lambda row: row["step"])


class Extent(NamedTuple):
    """How far a file of records goes."""

    last: int
    """Step of the last row that counts; 0 without one."""
    attempt: int
    """The newest attempt that wrote to it; 0 where none did."""
    continued: int
    """The largest step from which an attempt says that it continued."""
    damaged: int
    """Lines that are left out since they are damaged or torn."""


def extent_of(path: str | Path) -> Extent:
    """How far the records of a run go. A missing file has none."""
    rows, damaged = _whole_rows(path)
    return Extent(
        max((row["step"] for row in _counted(rows)), default=0),
        max((row["attempt"] for row in rows), default=0),
        max((row["step"] for row in rows if _START in row), default=0),
        damaged,
    )


def _whole_rows(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file, as they were written and in that order, but for those that cannot be right, and how many
    lines are none."""
    try:
        lines = read_file(path).split(b"\n")
    except FileNotFoundError:
        return [], 0
    rows: list[dict[str, Any]] = []
    checked: list[bool] = []
    for row in map(_parse, lines):
        if row is None or not _counts(row):
            continue
        check = row.pop(_CHECK, None)
        if check is None or check == _checksum(row):
            rows.append(row)
            checked.append(check is not None)
    in_order = _rising([row["attempt"] for row in rows])
    kept = [row for row, sure, fits in zip(rows, checked, in_order, strict=True) if sure or fits]
    # The last line may still be on its way.
    unfinished = lines[-1].startswith(b"{") and _parse(lines[-1]) is None
    return kept, sum(bool(line.strip()) for line in lines) - len(kept) - unfinished


def _checksum(row: dict[str, Any]) -> str:
    # Of one form, so that a tool may write a row otherwise as long as it says the same.
    return f"{zlib.crc32(json.dumps(row, sort_keys=True, separators=(',', ':')).encode()):08x}"


def _rising(attempts: list[int]) -> list[bool]:
    """Which rows fit together: attempts follow each other, so that one among larger or smaller ones is damaged.

    A longest subsequence that does not fall, by the last element of the best one of each length.
    """
    fits = [True] * len(attempts)
    if attempts == sorted(attempts):
        return fits
    ends: list[int] = []
    places: list[int] = []
    before: list[int] = []
    for place, attempt in enumerate(attempts):
        length = bisect_right(ends, attempt)
        before.append(places[length - 1] if length else -1)
        ends[length:], places[length:] = [attempt, *ends[length + 1 :]], [place, *places[length + 1 :]]
    fits = [False] * len(attempts)
    place = places[-1]
    while place >= 0:
        fits[place] = True
        place = before[place]
    return fits


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _counts(row: dict[str, Any]) -> bool:
    return all(type(row.get(name)) is int and 0 <= row[name] < 2**53 for name in ("step", "attempt"))
