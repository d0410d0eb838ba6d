"""Tables without a header row, whose columns are named elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.base.errors import UserError
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import BadRecords
from data_pipeline.sources.readers.base import Span
from data_pipeline.sources.readers.delimited import DelimitedReader
from data_pipeline.sources.readers.dialect import Dialect
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.separated import BOM
from data_pipeline.sources.readers.storage import ByteSource, ByteSources


class HeaderlessReader(DelimitedReader):
    """Rows of such files; a first row of just these names is a header all the same."""

    def __init__(
        self, sources: ByteSources, dialect: Dialect, extractor: Extractor, bad: BadRecords, columns: Sequence[str]
    ) -> None:
        """`columns`: their names."""
        super().__init__(sources, dialect, extractor, bad)
        self._names = list(columns)
        self._begins: dict[str, int] = {}

    def read_header(self, file: FileEntry) -> tuple[int, list[str]]:
        behind, first = super().read_header(file)
        if set(first) >= set(self._names):
            return behind, first
        if len(first) != len(self._names):
            raise UserError(
                f"{file.path} has {len(first)} columns, but {len(self._names)} are named:"
                f" {', '.join(self._names)}; name all of them"
            )
        self._begins[file.path] = len(BOM) if self._sources.get(file).fetch(0, len(BOM)) == BOM else 0
        return self._begins[file.path], list(self._names)

    def _next_start(self, file: FileEntry, source: ByteSource, span: Span, position: int) -> int | None:
        self._header(file)
        if position == self._begins.get(file.path) == span.start:
            return position  # there is no newline before the first row
        return super()._next_start(file, source, span, position)
