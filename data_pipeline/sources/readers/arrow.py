"""Arrow IPC files and streams; a span is one record batch.

A stream holds messages one after the other (https://arrow.apache.org/docs/format/Columnar.html, "IPC Streaming
Format"); their heads tell rows and sizes, so batches are found without reading their bodies. pyarrow can only go
through a stream from its start, and reads bodies to count rows. A file has a magic word in front, and a footer with the
schema and the places of the messages ("IPC File Format"), which is all that says where they are: what lies between them
is the writer's own business (Polars leaves out the prefix of the schema's message).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import BadRecords
from data_pipeline.sources.readers.base import RecentlyUsed, Span, unreadable
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.storage import OPEN_FILES, Files
from data_pipeline.sources.readers.tables import Rows, TableReader, as_bytes, require_texts, rows_per_block

_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3
_VERSION, _SCHEMA_TABLE, _DICTIONARY_BLOCKS, _RECORD_BATCH_BLOCKS = range(4)
"""Fields of a footer."""
_BLOCK = struct.Struct("<qi4xq")
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
    body: int
    """Bytes of the body alone."""


class Layout(NamedTuple):
    """What an IPC file or stream holds."""

    schema: bytes
    """The schema as the first message of a stream."""
    dictionaries: list[Message]
    batches: list[Message]
    before: list[int]
    """How many of the dictionaries each batch needs."""


def find_layout(read: Callable[[int, int], bytes], size: int) -> Layout:
    """The messages of an IPC file or stream of `size` bytes; `read` gives bytes by place and size.

    Raises:
        ValueError: it is no such file, or it is cut short or damaged.
    """
    if read(0, 6) != _MAGIC:
        return _stream_layout(read, size)
    tail = read(size - 10, 10)
    if tail[4:] != _MAGIC:
        raise ValueError("the Arrow file is cut short: its end mark is missing")
    length = int.from_bytes(tail[:4], "little", signed=True)
    if not 0 < length <= size - 18:
        raise ValueError("the footer of the Arrow file is damaged")
    end = size - 10 - length
    footer = read(end, length)
    blocks: dict[int, list[Message]] = {_DICTIONARY: [], _RECORD_BATCH: []}
    for kind, field in ((_DICTIONARY, _DICTIONARY_BLOCKS), (_RECORD_BATCH, _RECORD_BATCH_BLOCKS)):
        for place, body in _blocks(footer, field):
            message = _message(read, place, end)
            if message is None or (message.kind, message.body) != (kind, body):
                raise ValueError("the footer of the Arrow file is damaged")
            blocks[kind].append(message)
    dictionaries, batches = blocks.values()
    # A file's dictionaries come before all batches, wherever they lie.
    return Layout(_schema_message(footer), dictionaries, batches, [len(dictionaries)] * len(batches))


def _stream_layout(read: Callable[[int, int], bytes], size: int) -> Layout:
    if read(0, 4) == b"FEA1":
        raise ValueError("it is a Feather file of version 1, which is no Arrow file; write it again as version 2")
    layout = Layout(b"", [], [], [])
    place = 0
    while place < size and (message := _message(read, place, size)) is not None:
        if place == 0:
            if message.kind != _SCHEMA:
                raise ValueError("it is no Arrow file: it does not begin with a schema")
            layout = layout._replace(schema=read(place, message.size))
        elif message.kind == _DICTIONARY:
            layout.dictionaries.append(message)
        elif message.kind == _RECORD_BATCH:
            layout.batches.append(message)
            layout.before.append(len(layout.dictionaries))
        place += message.size
    if not layout.schema:
        raise ValueError("it is no Arrow file: it has no schema")
    return layout


def _message(read: Callable[[int, int], bytes], place: int, end: int) -> Message | None:
    """The message at a place; None for the mark that ends a stream."""
    head = read(place, _HEAD_BYTES)
    # Before Arrow 0.15 there was no continuation mark.
    prefix = 8 if head[:4] == _CONTINUATION else 4
    length = int.from_bytes(head[prefix - 4 : prefix], "little", signed=True)
    if length == 0:
        return None
    if length < 0 or place + prefix + length > end:
        raise ValueError("the Arrow file is cut short" if place else "it is no Arrow file, or it is cut short")
    if prefix + length > len(head):
        head = read(place, prefix + length)
    kind, body, rows = _parse(head[prefix : prefix + length])
    if body < 0 or rows < 0 or place + prefix + length + body > end:
        raise ValueError("the Arrow file is cut short")
    return Message(kind, place, prefix + length + body, rows, body)


def _blocks(footer: bytes, field: int) -> list[tuple[int, int]]:
    """Where the messages of one kind are, and the bytes of their bodies, by the vector of Blocks that a footer (a
    FlatBuffers table, see Arrow's File.fbs) has in a field: each int64 offset, int32 size of the head, padding, int64
    size of the body."""
    try:
        at = _field(footer, struct.unpack_from("<I", footer)[0], field)
        if not at:
            return []
        vector = at + struct.unpack_from("<I", footer, at)[0]
        count = struct.unpack_from("<I", footer, vector)[0]
        if vector + 4 + _BLOCK.size * count > len(footer):
            raise ValueError("the footer of the Arrow file is damaged")
        blocks = [_BLOCK.unpack_from(footer, vector + 4 + _BLOCK.size * i) for i in range(count)]
    except struct.error:
        raise ValueError("the footer of the Arrow file is damaged") from None
    if any(place < len(_MAGIC) for place, _, _ in blocks):
        raise ValueError("the footer of the Arrow file is damaged")
    return [(place, body) for place, _, body in blocks]


def _schema_message(footer: bytes) -> bytes:
    """A stream's first message, with the schema of a footer: a table Message of version, kind and header, and behind it
    the whole footer, in which the header is."""
    try:
        root = struct.unpack_from("<I", footer)[0]
        at = _field(footer, root, _VERSION)
        version = struct.unpack_from("<h", footer, at)[0] if at else 0
        at = _field(footer, root, _SCHEMA_TABLE)
        schema = at + struct.unpack_from("<I", footer, at)[0]
    except struct.error:
        raise ValueError("the footer of the Arrow file is damaged") from None
    if not at or schema >= len(footer):
        raise ValueError("the footer of the Arrow file has no schema")
    # The place of the table; its vtable: sizes of both, places of the three fields; the table.
    message = struct.pack("<I5H2xihBxI4x", 16, 10, 12, 4, 6, 8, 12, version, _SCHEMA, 8 + schema) + footer
    message += bytes(-len(message) % 8)
    return _CONTINUATION + struct.pack("<i", len(message)) + message


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
        self._layouts: RecentlyUsed[str, Layout] = RecentlyUsed(OPEN_FILES)

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

        layout = self._layouts.get(file.path) or self._layouts.put(file.path, _layout(self._files, file))
        first, needed = 0, []
        for message, count in zip(layout.batches, layout.before, strict=True):
            if first == span.start and message.rows:
                needed = [*layout.dictionaries[:count], message]
                break
            first += message.rows
        data = b"".join([layout.schema, *(self._files.read(file, each.place, each.size) for each in needed)])
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
        layout = _layout(files, file)
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(layout.schema))
        require_texts(schema, fields, file.path)
    except UserError:
        raise
    except Exception as error:  # pyarrow's own, and those of remote file systems
        raise unreadable(file.path, error) from None
    spans, first = [], 0
    for message in layout.batches:
        if message.rows:
            spans.append(Span(index, first, first + message.rows, message.size))
            first += message.rows
    return spans


def _layout(files: Files, file: FileEntry) -> Layout:
    return find_layout(lambda place, size: files.read(file, place, size), file.size)


def _validate(batch: Any) -> None:
    """Raise pyarrow's error unless offsets and sizes fit; invalid UTF-8 is let through."""
    for column in batch.columns:
        column.validate()
        as_bytes(column).validate(full=True)
