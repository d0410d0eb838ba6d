"""Arrow IPC files and streams; a span is one record batch.

Both formats hold the same messages one after the other (https://arrow.apache.org/docs/format/Columnar.html, "IPC
Streaming Format"; the file format adds a magic word in front and a footer). Their heads tell rows and sizes, so batches
are found without reading their bodies. pyarrow can only go through a stream from its start, and reads bodies to count
rows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data_pipeline.errors import UserError
from data_pipeline.fields import Fields
from data_pipeline.files import FileEntry
from data_pipeline.readers.bad_records import BadRecords
from data_pipeline.readers.base import RecentlyUsed, Span, unreadable
from data_pipeline.readers.extract import Extractor
from data_pipeline.readers.storage import OPEN_FILES, Files
from data_pipeline.readers.tables import Rows, TableReader, require_texts, rows_per_block

_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3
_HEAD_BYTES = 1 << 12


class Message(NamedTuple):
    """A message of an IPC file or stream."""

    kind: int
    place: int
    """First byte in the file."""
    size: int
    """Bytes, head and body."""
    rows: int
    """Rows of a record batch."""


def messages(read: Callable[[int, int], bytes], size: int) -> Iterator[Message]:
    """The messages of an IPC file or stream of `size` bytes; `read` gives bytes by place and size.

    Raises:
        ValueError: it is no such file, or it is cut short.
    """
    place, end = 0, size
    if read(0, 6) == _MAGIC:
        tail = read(size - 10, 10)
        if tail[4:] != _MAGIC:
            raise ValueError("the Arrow file is cut short: its end mark is missing")
        place, end = 8, size - 10 - int.from_bytes(tail[:4], "little")
    first = True
    while place < end:
        head = read(place, _HEAD_BYTES)
        # Before Arrow 0.15 there was no continuation mark.
        prefix = 8 if head[:4] == _CONTINUATION else 4
        length = int.from_bytes(head[prefix - 4 : prefix], "little", signed=True)
        if length == 0:
            break
        if length < 0 or place + prefix + length > end:
            raise ValueError("it is no Arrow file, or it is cut short" if first else "the Arrow file is cut short")
        if prefix + length > len(head):
            head = read(place, prefix + length)
        kind, body, rows = _parse(head[prefix : prefix + length])
        if body < 0 or rows < 0 or place + prefix + length + body > end:
            raise ValueError("the Arrow file is cut short")
        if first and kind != _SCHEMA:
            raise ValueError("it is no Arrow file: it does not begin with a schema")
        yield Message(kind, place, prefix + length + body, rows)
        place += prefix + length + body
        first = False
    if first:
        raise ValueError("it is no Arrow file: it has no schema")


def _parse(head: bytes) -> tuple[int, int, int]:
    """Kind, body's bytes and rows from a message's metadata (a FlatBuffers table, see Arrow's Message.fbs)."""
    try:
        root = struct.unpack_from("<I", head)[0]
        kind = struct.unpack_from("<B", head, _field(head, root, 1))[0]
        at = _field(head, root, 3)
        body = struct.unpack_from("<q", head, at)[0] if at else 0
        if kind != _RECORD_BATCH:
            return kind, body, 0
        header = _field(head, root, 2)
        at = _field(head, header + struct.unpack_from("<I", head, header)[0], 0)
        return kind, body, struct.unpack_from("<q", head, at)[0] if at else 0
    except struct.error:
        raise ValueError("a message of the Arrow file is damaged") from None


def _field(data: bytes, table: int, number: int) -> int:
    """Place of a field of a FlatBuffers table; 0 where it has its default."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, entries)[0] if entries >= 0 else 0
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", data, entries + 4 + 2 * number)[0]
    return table + offset if offset else 0


class ArrowReader(TableReader):
    """Rows of Arrow files and streams."""

    def __init__(self, files: Files, extractor: Extractor, bad: BadRecords) -> None:
        super().__init__(files, extractor, bad)
        self._messages: RecentlyUsed[str, list[Message]] = RecentlyUsed(OPEN_FILES)

    def rows(self, file: FileEntry, span: Span) -> Iterator[Rows]:
        batch = self._batch(file, span)
        # Its offsets are not trusted: a flipped bit in them would read foreign memory.
        _validate(batch)
        count = rows_per_block(batch.num_rows, batch.nbytes)
        for start in range(0, batch.num_rows, count):
            yield Rows(span.start + start, batch.slice(start, count))

    def open_bytes(self, span: Span) -> int:
        return span.size

    def _batch(self, file: FileEntry, span: Span) -> Any:
        """The record batch of a span: its message as a stream of its own, behind the schema and dictionaries."""
        import pyarrow

        found = self._messages.get(file.path) or self._messages.put(file.path, _all_messages(self._files, file))
        needed, first = [], 0
        for message in found:
            if message.kind != _RECORD_BATCH:
                needed.append(message)
            elif first == span.start and message.rows:
                needed.append(message)
                break
            first += message.rows
        data = b"".join(self._files.read(file, message.place, message.size) for message in needed)
        schema = pyarrow.ipc.open_stream(data).schema
        names = [name for name in self._extractor.fields.names if name in schema.names]
        options = pyarrow.ipc.IpcReadOptions(
            included_fields=[schema.get_field_index(name) for name in names], use_threads=False
        )
        batch = pyarrow.ipc.open_stream(data + _CONTINUATION + bytes(4), options=options).read_next_batch()
        if batch.num_rows != span.stop - span.start:
            raise ValueError("a message of the Arrow file is damaged")
        return batch


def arrow_spans(files: Files, file: FileEntry, index: int, fields: Fields) -> list[Span]:
    """One span per record batch, weighed by its bytes.

    Raises:
        UserError: the file is no Arrow IPC file or stream, is cut short, or lacks a field.
    """
    import pyarrow

    if not file.size:
        return []
    try:
        found = _all_messages(files, file)
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(files.read(file, found[0].place, found[0].size)))
        require_texts(schema, fields, file.path)
    except UserError:
        raise
    except Exception as error:  # pyarrow's own, and those of remote file systems
        raise unreadable(file.path, error) from None
    spans, first = [], 0
    for message in found:
        if message.kind == _RECORD_BATCH and message.rows:
            spans.append(Span(index, first, first + message.rows, message.size))
            first += message.rows
    return spans


def _all_messages(files: Files, file: FileEntry) -> list[Message]:
    return list(messages(lambda place, size: files.read(file, place, size), file.size))


def _validate(batch: Any) -> None:
    """Raise pyarrow's error unless offsets and sizes fit; invalid UTF-8 is let through."""
    import pyarrow

    for column in batch.columns:
        column.validate()
        kind = column.type
        plain = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}.get(kind, kind)
        column.view(plain).validate(full=True)
