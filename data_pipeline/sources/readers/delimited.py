"""CSV and TSV files with a header row (RFC 4180): quoted fields may hold newlines, separators and doubled quotes.

Whether a newline ends a record is known only from a record's start on. So where quotes or escapes are possible, spans
begin at records, and an unknown position is reached by parsing from the span's start.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import DAMAGED, EMPTY, REPAIRED, BadRecords
from data_pipeline.sources.readers.base import BLOCK_BYTES, ENDLESS, Block, RecentlyUsed, Span, no_records, unreadable
from data_pipeline.sources.readers.dialect import Dialect, header_problem
from data_pipeline.sources.readers.extract import TOO_LONG, Extractor, decode
from data_pipeline.sources.readers.line_notes import LineNotes
from data_pipeline.sources.readers.separated import BOM
from data_pipeline.sources.readers.storage import ByteSource, ByteSources

SCANNED_BYTES = 1 << 26
"""Quoted files of one source up to this size together are parsed once at the start to cut them at records; where there
is more, each file is one span."""
_KNOWN_STARTS = 1 << 16
_SOUGHT_BYTES = 1 << 30
"""How far the end of a row is sought that is too long."""
_CHUNK_BYTES = 1 << 20
MALFORMED = "malformed row"


class Row(NamedTuple):
    """A record, or why there is none."""

    start: int
    """Offset of its first byte."""
    values: list[str] | None
    problem: str
    repaired: str = ""
    """Which of its bytes were not UTF-8."""
    reason: str = MALFORMED
    """As counted where there are no values."""


class RowParser:
    """Cuts bytes into rows."""

    def __init__(self, dialect: Dialect, max_bytes: int, encoding: str, bad: BadRecords) -> None:
        self._dialect = dialect
        self._encoding = encoding
        special = f"{dialect.separator}{dialect.quote}{dialect.escape}\r\n"
        self._ordinary = re.compile(f"[^{re.escape(special)}]+")
        self._bad = bad
        self._filler = next(letter for letter in "wxyz" if letter not in special)
        # The limit is the process's; a smaller one would make a long text an error of its own.
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes))

    def rows(self, data: bytes, base: int, at_end: bool) -> tuple[list[Row], int]:
        """The rows that begin and end in `data`, which starts with a row.

        Args:
            base: offset of the first byte.
            at_end: the file ends here, so that the last row needs no newline, and one without end is given up.

        Returns:
            Rows in order, and the offset of the first byte behind them.
        """
        *whole, last = data.split(b"\n")
        lines = [line + b"\n" for line in whole] + [last] * (at_end and bool(last))
        ends = list(itertools.accumulate(map(len, lines), initial=base))
        repaired: dict[int, str] = {}
        try:
            texts = [line.decode(self._encoding) for line in lines]
        except UnicodeDecodeError:

            def note(at: int, reason: str, detail: str) -> None:
                repaired[at] = detail

            texts = [decode(line, i, note, self._encoding) for i, line in enumerate(lines)]
        # Before version 2, a row with a carriage return outside of quotes was none.
        returns = self._bad.version > 1 and data.count(b"\r") != data.count(b"\r\n")
        if returns:
            texts = [_RETURN.sub(_KEPT_RETURN, text) for text in texts]
        rows: list[Row] = []
        place = 0
        while place < len(lines):
            for count, values, problem in self._parse(texts[place:]):
                if problem == _UNFINISHED:
                    if not at_end:
                        return rows, ends[place]
                    # What follows in `data` may be much more than a block.
                    return [*rows, Row(ends[place], None, self.unclosed)], ends[place + 1]
                details = (repaired[line] for line in range(place, place + count) if line in repaired)
                texts_of_row = _with_returns(values) if returns and values else values
                rows.append(Row(ends[place], texts_of_row, problem, next(details, "") if repaired else ""))
                place += count
        return rows, ends[place]

    @property
    def unclosed(self) -> str:
        """What is wrong with a row that does not end before the file does."""
        return "a quote is not closed" if self._dialect.quote else "its last line ends with the escape character"

    def row_end(self, fetch: Callable[[int, int], bytes], start: int) -> int | None:
        """The offset behind the row that begins at `start`, however long it is, without holding it in memory.

        Args:
            fetch: gives bytes by offset and size; fewer only at the end.

        Returns:
            None where it is no row, since its last quote is not closed or something stands behind one that is, or where
            it has no end within 1 GiB.
        """
        end = start

        def lines() -> Iterator[str]:
            """Lines of which only what separates and quotes is kept, and a letter for what lies between."""
            nonlocal end
            decoder = codecs.getincrementaldecoder(self._encoding)("replace")
            place, line = start, ""
            while place - start < _SOUGHT_BYTES and (data := fetch(place, _CHUNK_BYTES)):
                for piece in io.BytesIO(data):
                    line += self._ordinary.sub(self._filler, decoder.decode(piece))
                    place += len(piece)
                    if piece.endswith(b"\n"):
                        end = place
                        yield _RETURN.sub(self._filler, line)
                        line = ""
            if line and place - start < _SOUGHT_BYTES:
                end = place
                yield _RETURN.sub(self._filler, line)

        try:
            next(self._reader(lines()))
        except (csv.Error, StopIteration):
            return None
        return end

    def _parse(self, texts: list[str]) -> Iterator[tuple[int, list[str] | None, str]]:
        """Lines taken and values of each row; of the first bad row one line and the reason, and then no more."""
        reader, taken = self._reader(texts), 0
        try:
            for values in reader:
                yield reader.line_num - taken, values, ""
                taken = reader.line_num
        except csv.Error as error:
            yield 1, None, str(error)

    def _reader(self, lines: Iterable[str]) -> Any:
        return csv.reader(
            lines,
            delimiter=self._dialect.separator,
            quotechar=self._dialect.quote or None,
            escapechar=self._dialect.escape or None,
            quoting=csv.QUOTE_MINIMAL if self._dialect.quote else csv.QUOTE_NONE,
            strict=True,
        )


_RETURN = re.compile(r"\r(?!\n?\Z)")
"""A carriage return that ends no line."""
_KEPT_RETURN = "\udc0d"
"""Stands for one while Python's reader, which allows them within quotes only, has the line; no decoded text has it."""


def _with_returns(values: list[str]) -> list[str]:
    return [value.replace(_KEPT_RETURN, "\r") for value in values]


_UNFINISHED = "unexpected end of data"


class DelimitedReader:
    """Rows of CSV and TSV files."""

    def __init__(self, sources: ByteSources, dialect: Dialect, extractor: Extractor, bad: BadRecords) -> None:
        self._sources = sources
        self._extractor = extractor
        self._bad = bad
        self._dialect = dialect
        self._parser = RowParser(dialect, extractor.max_bytes, sources.encoding, bad)
        self._headers: dict[str, list[str]] = {}
        self._starts: RecentlyUsed[tuple[str, int], bool] = RecentlyUsed(_KNOWN_STARTS)
        self._notes = LineNotes(self._sources, self._bad)

    def spans(self, files: list[FileEntry], limit: int) -> list[Span]:
        """Spans of about `limit` bytes at most where files can be cut, else one span a file.

        Raises:
            UserError: a file without header row, or whose header lacks a field.
        """
        plain = sum(file.size for file in files if not self._sources.is_stream(file))
        cut = self._dialect.lines or plain <= SCANNED_BYTES
        spans = []
        for index, file in enumerate(files):
            if not file.size:
                continue
            first, header = self.read_header(file)
            self._require_fields(file, header)
            if self._dialect.guessed:
                self._require_unquoted(file, first, header)
            if self._sources.is_stream(file):
                spans.append(Span(index, first, ENDLESS, file.size))
            elif first < file.size:
                edges = self._edges(file, first, limit) if cut else [first, file.size]
                spans += [Span(index, start, stop, stop - start) for start, stop in itertools.pairwise(edges)]
        return spans

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        source = self._sources.get(file)
        known = not self._dialect.lines and (
            position == span.start or self._starts.take((file.path, position)) is not None
        )
        start = position if known else self._next_start(file, source, span, position)
        if start is None or start >= span.stop:
            return no_records(None)
        rows, end = self._rows(source, start)
        next_position = end if end < span.stop and rows else None
        if next_position is not None:
            self._starts.put((file.path, next_position), True)
        elif source.problem is not None:
            self._notes.of(file)(start, DAMAGED, source.problem)
        return self._block(file, [row for row in rows if row.start < span.stop], next_position)

    def close(self) -> None:
        self._notes.close()
        self._sources.close()

    def read_header(self, file: FileEntry) -> tuple[int, list[str]]:
        """The offset behind the header row, and the names in it."""
        source = self._sources.get(file)
        skip = len(BOM) if source.fetch(0, 3) == BOM else 0
        size, limit = BLOCK_BYTES, self._extractor.max_bytes
        while True:
            data = source.fetch(skip, size)
            rows, end = self._parser.rows(data, skip, len(data) < size)
            if rows or len(data) < size or len(data) > limit:
                break
            size *= 2
        if not rows or not rows[0].values:
            empty = "its first line is empty" if rows else f"no row ends within data.max_document_bytes ({limit})"
            problem = source.problem or (rows[0].problem if rows else "") or empty
            raise unreadable(file.path, f"it has no header row: {problem}")
        names = rows[0].values
        # UTF-8's mark is taken off above; GB 18030 has one too.
        names[0] = names[0].removeprefix("\ufeff")
        return (rows[1].start if len(rows) > 1 else end), names

    def _require_fields(self, file: FileEntry, header: list[str]) -> None:
        """Raise UserError where the header lacks a field, with what it needs to be read as where that can be told."""
        fields = self._extractor.fields
        try:
            fields.require(header, file.path)
        except UserError as error:
            line = self._sources.get(file).fetch(0, BLOCK_BYTES).partition(b"\n")[0]
            missing = set(fields.names) - set(header)
            found = header_problem(header, missing, line, self._dialect, self._sources.encoding)
            raise (error if found is None else UserError(f"{file.path} {found}")) from None

    def _require_unquoted(self, file: FileEntry, first: int, header: list[str]) -> None:
        """Raise UserError where texts at the file's beginning are quoted, and nobody said how to take that: the way of
        spreadsheets and pandas, who quote what holds quotes, or literally."""
        rows, _ = self._rows(self._sources.get(file), first)
        places = [place for place, name in enumerate(header) if name in self._extractor.fields.names]
        cells = [row.values[at] for row in rows if row.values and len(row.values) == len(header) for at in places]
        cell = next(filter(_holds_doubled_quotes, cells), None)
        if len(cells) > 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
            cell = cells[0]
        if cell is not None:
            meant = cell[1:].removesuffix('"').replace('""', '"')
            raise UserError(
                f"{file.path} has the text {cell[:40]}, whose quotes may be the format's or its own; set quote of the"
                f" source to '\"' to read it as {meant[:40]}, or to '' to keep it as it is"
            )

    def _rows(self, source: ByteSource, start: int) -> tuple[list[Row], int]:
        """About a block of rows from a record's start on, and where the next one starts."""
        size, limit = BLOCK_BYTES, self._extractor.max_bytes
        while True:
            data = source.fetch(start, size)
            ended = len(data) < size
            rows, end = self._parser.rows(data, start, ended and source.problem is None)
            if rows or ended:
                return rows, end
            # Only a row that the data start with is given up, so that it never depends on those before it.
            if len(data) > limit:
                return self._long_row(source, start)
            size *= 2

    def _long_row(self, source: ByteSource, start: int) -> tuple[list[Row], int]:
        """What `_rows` gives where a row is longer than a document may be: none of its lines is a row of its own."""
        end = self._parser.row_end(source.fetch, start)
        if end is None:
            return [Row(start, None, self._parser.unclosed)], _behind_newline(source, start) or ENDLESS
        problem = f"{end - start} bytes, more than data.max_document_bytes ({self._extractor.max_bytes})"
        return [Row(start, None, problem, reason=TOO_LONG)], end

    def _next_start(self, file: FileEntry, source: ByteSource, span: Span, position: int) -> int | None:
        """The first record's start at or after a position that may be none; None at the file's end."""
        if not self._dialect.lines:
            start = span.start
            while start < position:
                rows, end = self._rows(source, start)
                if not rows:
                    return None
                start = next((row.start for row in rows if row.start >= position), end)
            return start
        return _behind_newline(source, position - 1)

    def _edges(self, file: FileEntry, first: int, limit: int) -> list[int]:
        """Where the spans of a file begin and end."""
        if self._dialect.lines:
            count = -(-(file.size - first) // limit)
            return [first + (file.size - first) * i // count for i in range(count + 1)]
        source, edges, place = self._sources.get(file), [first], first
        while place < file.size:
            rows, end = self._rows(source, place)
            for before, after in itertools.pairwise([*(row.start for row in rows), end]):
                if after > edges[-1] + limit and before > edges[-1]:
                    edges.append(before)
            place = max(end, place + 1) if rows else file.size
        return [*edges, file.size]

    def _block(self, file: FileEntry, rows: list[Row], next_position: int | None) -> Block:
        note, header = self._notes.of(file), self._header(file)
        kept: list[Row] = []
        for row in rows:
            if row.repaired:
                note(row.start, REPAIRED, row.repaired)
            if row.values and len(row.values) == len(header):
                kept.append(row)
                continue
            self._bad.records_read += 1
            if row.values:
                note(row.start, MALFORMED, f"{len(row.values)} fields where the header has {len(header)}")
            elif row.values is None:
                note(row.start, row.reason, row.problem)
            else:
                self._bad.dropped[EMPTY] += 1
        columns = {
            name: [row.values[place] for row in kept if row.values]
            for place, name in enumerate(header)
            if name in self._extractor.fields.names
        }
        positions = [row.start for row in kept]
        return self._extractor.columns(positions, columns, note, next_position)

    def _header(self, file: FileEntry) -> list[str]:
        if file.path not in self._headers:
            self._headers[file.path] = self.read_header(file)[1]
        return self._headers[file.path]


def _holds_doubled_quotes(cell: str) -> bool:
    """Whether a field, or its part on a line, looks like one that was put in quotes since it holds a quote."""
    inner = cell[1:].replace('""', "")
    return cell[:1] == '"' and len(inner) < len(cell) - 1 and '"' not in inner.removesuffix('"')


def _behind_newline(source: ByteSource, place: int) -> int | None:
    """The offset behind the first newline at or after a place; None where there is none."""
    while data := source.fetch(place, BLOCK_BYTES):
        if (found := data.find(b"\n")) >= 0:
            return place + found + 1
        place += len(data)
    return None
