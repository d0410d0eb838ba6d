"""Records that a separator ends: lines of text, JSON lines, texts split at a delimiter.

A record begins at the file's start and right behind every place where the separator stands, overlapping places
included. This depends on nothing before it, so a reader can start anywhere. A record belongs to the span in which its
first byte lies (Hadoop's rule), so spans need not know where records end.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
from typing import Any, Protocol

import orjson

from data_pipeline.base.encodings import UTF8, to_utf8
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import DAMAGED, EMPTY, SURROGATES, VERSION, BadRecords
from data_pipeline.sources.readers.base import BLOCK_BYTES, ENDLESS, Block, Span, no_records
from data_pipeline.sources.readers.extract import TOO_LONG, Extractor, Note, decode, is_too_long, usable
from data_pipeline.sources.readers.line_notes import LineNotes
from data_pipeline.sources.readers.storage import ByteSource, ByteSources

BOM = b"\xef\xbb\xbf"
NOT_JSON = "not JSON"
PASSED_BYTES = 1 << 20
"""Bytes at a time of a record that is passed over."""


class Pieces:
    """The raw records in a stretch of bytes."""

    def __init__(self, data: bytes, begin: int, end: int, base: int, separator: bytes, *, overlaps: bool) -> None:
        """
        Args:
            data: bytes of the file from `base` on.
            begin: index of the first record's first byte.
            end: index of the last record's separator.
            overlaps: the separator can stand twice in less than twice its length, as in "\\n\\n\\n".
        """
        self.separator = separator
        self.overlaps = overlaps
        self._start = base + begin
        self.begins_file = self._start == 0
        self._mark = len(BOM) if self._start == 0 and data.startswith(BOM) else 0
        self._data, self._begin, self._end = data, begin + self._mark, end

    @functools.cached_property
    def joined(self) -> bytes:
        """The records with their separators between them."""
        return self._data[self._begin : self._end]

    def split(self) -> list[bytes]:
        """One by one."""
        if not self.overlaps:
            return self.joined.split(self.separator)
        edges = self._edges()
        starts = [self._begin, *(edge + len(self.separator) for edge in edges)]
        return [self._data[start:stop] for start, stop in zip(starts, [*edges, self._end], strict=True)]

    def lines(self) -> io.BytesIO:
        """An iterator over records that newlines separate, newlines included. It makes one at a time, in the same
        memory over and over; to split first takes half as long again."""
        return io.BytesIO(self._data[self._begin : self._end + 1])

    def positions(self) -> list[int]:
        """Where they begin in the file."""
        if self.separator == b"\n":
            behind = list(itertools.accumulate(map(len, self.lines()), initial=self._start + self._mark))[1:-1]
        else:
            shift = self._start + self._mark - self._begin + len(self.separator)
            behind = [edge + shift for edge in self._edges()]
        # A byte order mark belongs to the first record.
        return [self._start, *behind]

    def _edges(self) -> list[int]:
        """Where separators stand that end behind the first record's first byte; overlapping ones too."""
        first = self._begin - len(self.separator) + 1 if self.overlaps else self._begin
        step = 1 if self.overlaps else len(self.separator)
        edges, found = [], self._data.find(self.separator, max(0, first))
        while 0 <= found < self._end:
            edges.append(found)
            found = self._data.find(self.separator, found + step)
        return edges


class ConvertedPieces(Pieces):
    """The raw records of a file in another encoding, as UTF-8; positions are those in the file."""

    def __init__(self, raw: Pieces, encoding: str) -> None:
        self._raw = raw
        self._encoding = encoding
        self.separator = to_utf8(raw.separator, encoding)
        # A delimiter may be spelled in several ways in an encoding, but only one of them cuts.
        self.overlaps = self.separator != b"\n"

    @functools.cached_property
    def joined(self) -> bytes:
        return self.separator.join(self._texts)

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        try:
            if self.overlaps:
                raise UnicodeError
            texts = self._raw.joined.decode(self._encoding).encode().split(b"\n")
        except UnicodeError:  # one by one, so that what is invalid reaches into no other record
            texts = [to_utf8(piece, self._encoding) for piece in self._raw.split()]
        if self._raw.begins_file:
            texts[0] = texts[0].removeprefix(BOM)
        return texts

    def split(self) -> list[bytes]:
        return self._texts

    def lines(self) -> io.BytesIO:
        return io.BytesIO(self.joined + b"\n")

    def positions(self) -> list[int]:
        return self._raw.positions()


class Parser(Protocol):
    """Makes a block of raw records."""

    def parse(self, pieces: Pieces, note: Note, next_position: int | None) -> Block:
        """Bad records are noted, empty ones counted."""
        ...


class TextParser:
    """Each record is a text."""

    def __init__(self, bad: BadRecords, max_bytes: int, *, lines: bool) -> None:
        """
        Args:
            max_bytes: a text of more bytes in UTF-8 is a bad record.
            lines: carriage returns at the end do not belong to the text.
        """
        self._bad = bad
        self._max_bytes = max_bytes
        self._lines = lines

    def parse(self, pieces: Pieces, note: Note, next_position: int | None) -> Block:
        try:
            # A separator that is UTF-8 stands in the text wherever it stands in the bytes.
            if pieces.overlaps:
                texts = list(map(bytes.decode, pieces.split()))
            else:
                texts = pieces.joined.decode().split(pieces.separator.decode())
        except UnicodeDecodeError:
            places = zip(pieces.split(), pieces.positions(), strict=True)
            texts = [decode(piece, place, note) for piece, place in places]
        self._bad.records_read += len(texts)
        if self._lines and b"\r" in pieces.joined:
            texts = [text.rstrip("\r") for text in texts]
        if usable(texts, self._max_bytes):
            return Block(texts, pieces.positions, next_position)
        full = [(text, place) for text, place in zip(texts, pieces.positions(), strict=True) if text.strip()]
        self._bad.dropped[EMPTY] += len(texts) - len(full)
        kept = [(text, place) for text, place in full if not is_too_long(text, place, self._max_bytes, note)]
        return Block([text for text, _ in kept], [place for _, place in kept], next_position)


class JsonParser:
    """Each record is a JSON object on a line."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        fields = extractor.fields.both
        plain = not extractor.fields.others and all(field.template is None for field in fields)
        self._plain = [field.names[0] for field in fields] if plain else []

    def parse(self, pieces: Pieces, note: Note, next_position: int | None) -> Block:
        if not self._plain:
            return self._each(pieces, note, next_position)
        loads, lines, name, second = orjson.loads, pieces.lines(), self._plain[0], self._plain[-1]
        targets: list[str] | None = None
        try:
            if len(self._plain) == 1:
                texts = [loads(line)[name] for line in lines]
            else:
                pairs = [((row := loads(line))[name], row[second]) for line in lines]
                texts, targets = [text for text, _ in pairs], [target for _, target in pairs]
        except (ValueError, KeyError, TypeError):
            return self._each(pieces, note, next_position)
        if not all(map(self._extractor.usable, (texts, targets or ["-"]))):
            return self._each(pieces, note, next_position)
        self._extractor.bad.records_read += len(texts)
        return Block(texts, pieces.positions, next_position, targets)

    def _each(self, pieces: Pieces, note: Note, next_position: int | None) -> Block:
        """The same when something in the block is out of the ordinary: every record is judged for itself."""
        kept, records = [], []
        for piece, position in zip(pieces.split(), pieces.positions(), strict=True):
            self._extractor.bad.records_read += 1
            if not piece.strip():
                self._extractor.bad.dropped[EMPTY] += 1
                continue
            try:
                record = json_value(piece, position, note, self._extractor.bad.version)
            except orjson.JSONDecodeError as error:
                note(position, NOT_JSON, f"{error.msg}, column {error.colno}")
                continue
            kept.append(position)
            records.append(record)
        return self._extractor.records(kept, records, note, next_position)


_ESCAPES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)
"""Escapes of JSON: a pair of surrogates, a lone one (the group), and any other."""


def json_value(piece: bytes, position: int, note: Note, version: int = VERSION) -> Any:
    """The value of a line, repaired where it must be, which is noted; raises JSONDecodeError for what is no JSON."""
    try:
        return orjson.loads(piece)
    except orjson.JSONDecodeError:
        record = _repaired(piece, position, note, version)
        if record is None:
            raise
        return record


def _repaired(piece: bytes, position: int, note: Note, version: int) -> Any:
    """A JSON value that orjson does not take as it is, once bytes that are not UTF-8 and lone surrogates are U+FFFD,
    which is noted; None for what is no JSON even then. Numbers may be of any size, as JSON has it."""
    text = piece.decode(errors="replace")
    whole = _ESCAPES.sub(lambda escape: "\\ufffd" if escape[1] else escape[0], text) if version > 1 else text
    try:
        record = orjson.loads(whole)
    except orjson.JSONDecodeError:
        if version == 1:
            return None
        try:
            record = json.loads(whole, parse_int=float, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return None
    if text.encode() != piece:
        decode(piece, position, note)
    elif whole != text:
        note(position, SURROGATES, "an escape stands for half of a character")
    return record


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class SeparatedReader:
    """Reads the records of a byte range; any position costs one seek in a plain file."""

    def __init__(self, sources: ByteSources, separator: str, parser: Parser, bad: BadRecords, max_bytes: int) -> None:
        """
        Args:
            sources: give the files' bytes.
            separator: what stands between records.
            parser: what the records are.
            bad: gets those that cannot be used.
            max_bytes: a longer record of more than a block is noted and passed over without holding it in memory.
        """
        self._sources = sources
        self._separator = separator.encode(sources.encoding)
        self._parser = parser
        self._bad = bad
        self._max_bytes = max_bytes
        # Whole blocks are read anyway, and where they begin must not decide which records are too long.
        self._longest = max(max_bytes, BLOCK_BYTES)
        # Such as "\n\n", which can stand twice in "\n\n\n".
        self._overlaps = any(self._separator.startswith(self._separator[i:]) for i in range(1, len(self._separator)))
        self._notes = LineNotes(self._sources, self._bad)

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        source = self._sources.get(file)
        base, begin, data = self._first_record(source, span, position)
        if begin is None:
            self._has_problem(file, source, base)
            return no_records(None)
        return self._records(file, source, base, begin, data, span.stop)

    def close(self) -> None:
        self._notes.close()
        self._sources.close()

    def _first_record(self, source: ByteSource, span: Span, position: int) -> tuple[int, int | None, bytes]:
        """The first record that starts at or after a position.

        Returns:
            The place from which bytes were fetched, the record's first byte among them (None where the span holds no
            record any more), and the bytes.
        """
        separator = self._separator
        # The separator before a position tells whether a record starts there.
        base = max(0, position - len(separator))
        size = BLOCK_BYTES + position - base
        data = source.fetch(base, size)
        if position == 0:
            return 0, 0, data
        while (found := data.find(separator)) < 0:
            # It may stand across the end of what was fetched.
            base += max(0, len(data) - len(separator) + 1)
            if len(data) < size or base + len(separator) >= span.stop:
                return base, None, b""
            data = source.fetch(base, size)
        begin = found + len(separator)
        return base, begin if base + begin < span.stop else None, data

    def _records(self, file: FileEntry, source: ByteSource, base: int, begin: int, data: bytes, stop: int) -> Block:
        """The block of records from one on; arguments as `_first_record` returns them."""
        separator, width = self._separator, len(self._separator)
        # Separators that end behind the record's first byte.
        first = max(0, begin - width + 1) if self._overlaps else begin
        while True:
            # The first separator behind which no record of this span starts.
            end = data.find(separator, max(first, stop - base - width))
            if end >= 0:
                return self._block(file, data, base, begin, end, None)
            end = data.rfind(separator, first)
            if end >= 0:
                return self._block(file, data, base, begin, end, base + end + width)
            if len(data) - begin >= self._longest + width:
                return self._pass_over(file, source, base + begin, base + len(data) - width + 1, stop)
            size = max(min(2 * len(data), begin + self._longest + width), begin + BLOCK_BYTES)
            data = source.fetch(base, size)
            if len(data) < size and data.find(separator, first) < 0:
                if self._has_problem(file, source, base + begin) or len(data) <= begin:
                    return no_records(None)
                return self._block(file, data, base, begin, len(data), None)

    def _block(self, file: FileEntry, data: bytes, base: int, begin: int, end: int, next_position: int | None) -> Block:
        """Records of `data` from `begin` to `end`, where the last one's separator stands."""
        pieces = Pieces(data, begin, end, base, self._separator, overlaps=self._overlaps)
        if self._sources.encoding != UTF8:
            pieces = ConvertedPieces(pieces, self._sources.encoding)
        return self._parser.parse(pieces, self._notes.of(file), next_position)

    def _pass_over(self, file: FileEntry, source: ByteSource, start: int, place: int, stop: int) -> Block:
        """Note a record that is too long, and go on behind its end, which lies at `place` or later."""
        self._bad.records_read += 1
        self._notes.of(file)(start, TOO_LONG, f"more than data.max_document_bytes ({self._max_bytes})")
        width = len(self._separator)
        while place + width < stop:
            data = source.fetch(place, PASSED_BYTES)
            found = data.find(self._separator)
            if found >= 0:
                position = place + found + width
                return no_records(position if position < stop else None)
            if len(data) < PASSED_BYTES:
                self._has_problem(file, source, place)
                break
            place += len(data) - width + 1
        return no_records(None)

    def _has_problem(self, file: FileEntry, source: ByteSource, position: int) -> bool:
        """Whether the file ends because it is damaged, which is noted."""
        if source.problem is None:
            return False
        self._notes.of(file)(position, DAMAGED, source.problem)
        return True


def byte_spans(sources: ByteSources, files: list[FileEntry], limit: int) -> list[Span]:
    """Equal byte ranges of at most `limit` of each plain file; what can only be read from its start is one span."""
    spans = []
    for index, file in enumerate(files):
        if sources.is_stream(file):
            spans += [Span(index, 0, ENDLESS, file.size)] if file.size else []
            continue
        count = -(-file.size // limit)
        edges = [file.size * i // count for i in range(count + 1)] if count else []
        spans += [Span(index, start, stop, stop - start) for start, stop in itertools.pairwise(edges)]
    return spans
