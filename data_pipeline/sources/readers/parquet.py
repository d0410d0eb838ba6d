"""Parquet files; a span is one row group, which is decoded from its start to reach a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.base import Span, unreadable
from data_pipeline.sources.readers.storage import Files
from data_pipeline.sources.readers.tables import Rows, TableReader, require_texts, rows_per_block

_OPEN_BYTES = 2 << 20
"""A page and a dictionary, as most writers make them."""


class ParquetReader(TableReader):
    """Rows of Parquet files."""

    def rows(self, file: FileEntry, span: Span) -> Iterator[Rows]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self._files.open(file.path), buffer_size=1 << 16) as parquet:
            group, first = 0, 0
            while first < span.start:
                first += parquet.metadata.row_group(group).num_rows
                group += 1
            count = rows_per_block(span.stop - span.start, span.size)
            present = parquet.schema_arrow.names
            names = [name for name in self._extractor.fields.names if name in present]
            for batch in parquet.iter_batches(count, [group], names, use_threads=False):
                yield Rows(first, batch)
                first += batch.num_rows

    def open_bytes(self, span: Span) -> int:
        return min(span.size, _OPEN_BYTES)


def parquet_spans(files: Files, file: FileEntry, index: int, fields: Fields) -> list[Span]:
    """One span per row group, weighed by its uncompressed bytes.

    Raises:
        UserError: the file is no Parquet file, or lacks a field.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(files.open(file.path)) as parquet:
            require_texts(parquet.schema_arrow, fields, file.path)
            metadata = parquet.metadata
        return _row_groups(metadata, index)
    except UserError:
        raise
    except Exception as error:  # pyarrow's own, and those of remote file systems
        raise unreadable(file.path, error) from None


def _row_groups(metadata: Any, index: int) -> list[Span]:
    spans, first = [], 0
    for number in range(metadata.num_row_groups):
        # Sizes of single columns would be fairer weights, but pyarrow 26 aborts the process where they are damaged.
        group = metadata.row_group(number)
        if group.num_rows < 0:
            raise ValueError("its footer is damaged")
        if group.num_rows:
            spans.append(Span(index, first, first + group.num_rows, max(1, group.total_byte_size)))
        first += group.num_rows
    return spans
