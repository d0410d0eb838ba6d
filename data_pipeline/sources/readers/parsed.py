"""Files whose records only reading all before them tells apart: JSON that is one value, and CoNLL's columns."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from data_pipeline.base.encodings import UTF8, to_utf8
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import DAMAGED, LineNumbers
from data_pipeline.sources.readers.base import Block, RecentlyUsed, Span, no_records, unreadable
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.separated import BOM, NOT_JSON, json_value
from data_pipeline.sources.readers.storage import ByteSources

_BLOCK_RECORDS = 256
_KEPT_BYTES = 1 << 26
"""Of files whose records are kept in memory; the newest is kept however large it is."""


class Parsed(NamedTuple):
    """The records of a file."""

    positions: list[int]
    """Increasing: where each begins."""
    records: list[dict[str, Any] | str]
    """What each holds; a text where it is bad: why."""


Parse = Callable[[str, bytes], Parsed]
"""Reads the records in a file's contents; raises ValueError where it is no such file."""


class ParsedReader:
    """Records of files that are read as a whole."""

    def __init__(self, sources: ByteSources, parse: Parse, extractor: Extractor, *, lines: bool) -> None:
        """`lines`: whether positions are bytes of the file, so that bad records have a line."""
        self._sources = sources
        self._parse = parse
        self._extractor = extractor
        self._lines = lines
        self._parsed: RecentlyUsed[str, Parsed] = RecentlyUsed(_KEPT_BYTES)

    def spans(self, files: list[FileEntry], limit: int) -> list[Span]:
        """Spans of about `limit` bytes, each of whole records.

        Raises:
            UserError: a file is not what it should be, or lacks a field.
        """
        spans: list[Span] = []
        for index, file in enumerate(files):
            parsed = self._get(file)
            first = next((record for record in parsed.records if isinstance(record, dict)), None)
            if first is None:
                continue
            self._extractor.fields.require(first, file.path)
            count = min(len(parsed.positions), max(1, -(-file.size // limit)))
            edges = [len(parsed.positions) * part // count for part in range(count)]
            starts = [parsed.positions[edge] for edge in edges]
            stops = [*starts[1:], parsed.positions[-1] + 1]
            size = max(1, file.size // count)
            spans += [Span(index, start, stop, size) for start, stop in zip(starts, stops, strict=True)]
        # Without a single good record they are read all the same, so that it is said what is wrong.
        return spans or [
            Span(index, parsed.positions[0], parsed.positions[-1] + 1, file.size)
            for index, (file, parsed) in enumerate((file, self._get(file)) for file in files)
            if parsed.positions
        ]

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        parsed = self._get(file)
        first = bisect_left(parsed.positions, max(position, span.start))
        stop = bisect_left(parsed.positions, span.stop)
        last = min(first + _BLOCK_RECORDS, stop)
        if first >= last:
            return no_records(None)
        bad = self._extractor.bad
        numbers = LineNumbers(self._sources.open(file)) if self._lines else None

        def note(place: int, reason: str, detail: str) -> None:
            bad.note(reason, file.path, place, detail, lines=numbers, row=None if self._lines else place)

        bad.records_read += last - first
        kept = []
        for place in range(first, last):
            record = parsed.records[place]
            if isinstance(record, str):
                note(parsed.positions[place], "malformed", record)
            else:
                kept.append(place)
        positions = [parsed.positions[place] for place in kept]
        records = [parsed.records[place] for place in kept]
        following = parsed.positions[last] if last < stop else None
        return self._extractor.records(positions, records, note, following)

    def close(self) -> None:
        self._parsed.close()
        self._sources.close()

    def _get(self, file: FileEntry) -> Parsed:
        found = self._parsed.get(file.path)
        if found is None:
            try:
                found = self._parse(file.path, self._contents(file))
            except ValueError as error:
                raise unreadable(file.path, error) from None
            self._parsed.put(file.path, found, file.size)
        return found

    def _contents(self, file: FileEntry) -> bytes:
        source = self._sources.open(file)
        parts, size = [], 0
        while part := source.fetch(size, 1 << 24):
            parts.append(part)
            size += len(part)
        problem = getattr(source, "problem", None)
        if problem is not None:
            raise unreadable(file.path, f"it is {DAMAGED.removeprefix('compressed file is ')} ({problem})")
        return b"".join(parts)


def conll_parser(encoding: str = UTF8) -> Parse:
    """Reads the columns of CoNLL's shared tasks (Tjong Kim Sang and De Meulder 2003): a word a line with its tags,
    columns apart by spaces or tabs, an empty line behind each sentence. Lines that begin with `-DOCSTART-` are left
    out, and of files with tabs (CoNLL-U) the lines that begin with `#`.

    A record has the first column as `tokens`, the last one as `tags`, and each by its number from 0. It stands at the
    byte of its first line.

    Args:
        encoding: of the files, in which a newline is a byte.
    """

    def parse(path: str, data: bytes) -> Parsed:
        found = Parsed([], [])
        rows: list[list[str]] = []
        place = begin = 0
        tabs = b"\t" in data
        for line in [*data.split(b"\n"), b""]:
            converted = (line if encoding == UTF8 else to_utf8(line, encoding)).decode(errors="replace")
            text = (converted.removeprefix("\ufeff") if place == 0 else converted).strip(" \t\r")
            if text and not text.startswith(_DOCUMENT) and not (tabs and text[0] == "#" and "\t" not in text):
                begin = begin if rows else place
                rows.append(text.split("\t") if tabs else _SPACES.split(text))
            elif not text and rows:
                found.positions.append(begin)
                found.records.append(_sentence(rows))
                rows = []
            place += len(line) + 1
        return found

    return parse


_DOCUMENT = "-DOCSTART-"
_SPACES = re.compile(" +")


def _sentence(rows: list[list[str]]) -> dict[str, Any] | str:
    width = len(rows[0])
    odd = next((row for row in rows if len(row) != width), None)
    if odd is not None:
        return f"the line of {odd[0][:40]!r} has {len(odd)} columns, but that of {rows[0][0][:40]!r} has {width}"
    columns = [list(column) for column in zip(*rows, strict=True)]
    return {
        **{str(number): column for number, column in enumerate(columns)},
        "tokens": columns[0],
        **({"tags": columns[-1]} if width > 1 else {}),
    }


def json_parser(levels: str) -> Parse:
    """Reads the records of JSON that is one value: `levels` is the path of lists to them, such as `data.paragraphs.qas`
    for SQuAD, and each has the fields of what it lies in, too; "" for a list of records. They stand at their numbers
    from 0."""

    def parse(path: str, data: bytes) -> Parsed:
        try:
            value = json_value(data.removeprefix(BOM), 0, lambda *noted: None)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{NOT_JSON}: {error.msg}, line {error.lineno}") from None
        records: list[dict[str, Any] | str] = [*descend(value, levels.split(".") if levels else [], {})]
        return Parsed(list(range(len(records))), records)

    return parse


def descend(value: Any, names: list[str], above: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records in a JSON value, below lists of these names; raises ValueError where there are none."""
    if isinstance(value, list):
        for each in value:
            yield from descend(each, names, above)
        return
    if not isinstance(value, dict):
        raise ValueError(f"it has {type(value).__name__} where records should be; correct records")
    if not names:
        yield above | value
        return
    if names[0] not in value:
        raise ValueError(
            f"it has no {names[0]!r} but {', '.join(map(repr, value)) or 'nothing'} on the way to its records; correct"
            f" records"
        )
    rest = {name: each for name, each in value.items() if name != names[0]}
    yield from descend(value[names[0]], names[1:], above | rest)
