"""Rows of Arrow batches: what Parquet and Arrow files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import BadRecords
from data_pipeline.sources.readers.base import BLOCK_BYTES, Block, RecentlyUsed, Span, unreadable
from data_pipeline.sources.readers.extract import Extractor, Note, decode
from data_pipeline.sources.readers.storage import CACHED_BYTES, Files

ROWS_PER_BLOCK = 10_000


class Rows(NamedTuple):
    """Some rows of a file."""

    first: int
    """Row of the file that comes first."""
    batch: Any
    """A pyarrow RecordBatch of the fields' columns."""


class TableReader(ABC):
    """Reads one span, a row group or record batch, on from a row. Subclasses decode."""

    def __init__(self, files: Files, extractor: Extractor, bad: BadRecords) -> None:
        self._files = files
        self._extractor = extractor
        self._bad = bad
        self._open: RecentlyUsed[tuple[str, int], Iterator[Rows]] = RecentlyUsed(
            CACHED_BYTES, lambda rows: rows.close() if hasattr(rows, "close") else None
        )

    @abstractmethod
    def rows(self, file: FileEntry, span: Span) -> Iterator[Rows]:
        """The rows of a span, about 64 KiB of text at a time."""

    @abstractmethod
    def open_bytes(self, span: Span) -> int:
        """Memory that a half-read span takes, in bytes."""

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        try:
            return self._read(file, span, position)
        except UserError:
            raise
        except Exception as error:  # pyarrow's own, those of the file system, and MemoryError for absurd sizes
            raise unreadable(file.path, error) from None

    def close(self) -> None:
        self._open.close()
        self._files.close()

    def _read(self, file: FileEntry, span: Span, position: int) -> Block:
        rows = self._open.take((file.path, position)) or self.rows(file, span)
        for first, batch in rows:
            end = first + batch.num_rows
            if end <= position:
                continue
            if end > span.stop:
                break
            next_position = end if end < span.stop else None
            start = max(first, position)
            block = self._block(file, batch.slice(start - first), start, next_position)
            if next_position is not None:
                self._open.put((file.path, end), rows, self.open_bytes(span))
            return block
        raise ValueError("it does not have the rows that its footer tells")

    def _block(self, file: FileEntry, batch: Any, position: int, next_position: int | None) -> Block:
        def note(row: int, reason: str, detail: str) -> None:
            self._bad.note(reason, file.path, row, detail, row=row)

        columns = {
            name: values_of(batch.column(batch.schema.get_field_index(name)), position, note)
            for name in self._extractor.fields.names
            if name in batch.schema.names
        }
        positions = list(range(position, position + batch.num_rows))
        return self._extractor.columns(positions, columns, note, next_position)


def values_of(column: Any, position: int, note: Note) -> list[Any]:
    """An Arrow column as Python values; binary ones as UTF-8, repaired where that is invalid."""
    import pyarrow

    kinds = pyarrow.types
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    if not any(fits(kind) for fits in (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)):
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            column = as_bytes(column)
    return [
        decode(value, row, note) if isinstance(value, bytes) else value
        for row, value in enumerate(column.to_pylist(), position)
    ]


def as_bytes(column: Any) -> Any:
    """An Arrow column of strings as one of bytes, without copying; another one as it is."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        return pyarrow.DictionaryArray.from_arrays(column.indices, as_bytes(column.dictionary))
    plain = {
        pyarrow.string(): pyarrow.binary(),
        pyarrow.large_string(): pyarrow.large_binary(),
        pyarrow.string_view(): pyarrow.binary_view(),
    }
    return column.view(plain.get(column.type, column.type))


def require_texts(schema: Any, fields: Fields, path: str) -> None:
    """Raise UserError unless an Arrow schema has the fields, as strings."""
    import pyarrow

    kinds = pyarrow.types
    fields.require(schema.names, path)
    for field in fields.both if fields.layout is None else []:
        for name in field.names:
            if name not in schema.names:
                continue
            kind = schema.field(name).type
            kind = kind.value_type if kinds.is_dictionary(kind) else kind
            text = (
                kinds.is_string,
                kinds.is_large_string,
                kinds.is_string_view,
                kinds.is_binary,
                kinds.is_large_binary,
                kinds.is_binary_view,
            )
            lists = (kinds.is_list, kinds.is_large_list) if field.join is not None else ()
            if not any(fits(kind) for fits in (*text, *lists, kinds.is_null)):
                raise UserError(
                    f"{field.setting}: {name!r} of {path} holds {kind}, not text; set {field.setting} to a text column"
                )


def rows_per_block(rows: int, size: int) -> int:
    """Rows of about 64 KiB of text, where `rows` have `size` bytes."""
    return min(ROWS_PER_BLOCK, max(1, BLOCK_BYTES * rows // max(1, size)))
