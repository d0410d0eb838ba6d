"""Text files that are one document each."""

from __future__ import annotations

from data_pipeline.base.encodings import UTF8, to_utf8
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import DAMAGED, EMPTY, BadRecords
from data_pipeline.sources.readers.base import ENDLESS, Block, Span, no_records
from data_pipeline.sources.readers.extract import TOO_LONG, decode
from data_pipeline.sources.readers.separated import BOM
from data_pipeline.sources.readers.storage import DecompressedBytes, Files, PlainBytes, is_compressed


class FileReader:
    """One record a file. What can be had of a damaged compressed file is no whole document, so it is left out."""

    def __init__(self, files: Files, bad: BadRecords, max_bytes: int, encoding: str = UTF8) -> None:
        """`max_bytes`: a longer text is a bad record; `encoding`: what the files are in."""
        self._files = files
        self._bad = bad
        self._max_bytes = max_bytes
        self._encoding = encoding

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        def note(position: int, reason: str, detail: str) -> None:
            self._bad.note(reason, file.path, position, detail)

        source = DecompressedBytes(self._files, file) if is_compressed(file.path) else PlainBytes(self._files, file)
        data = source.fetch(0, self._max_bytes + 1) if position == 0 else b""
        if not data and source.problem is None:
            return no_records(None)
        self._bad.records_read += 1
        if source.problem is not None:
            note(0, DAMAGED, source.problem)
            return no_records(None)
        if len(data) > self._max_bytes:
            note(0, TOO_LONG, f"more than data.max_document_bytes ({self._max_bytes})")
            return no_records(None)
        if self._encoding != UTF8:
            data = to_utf8(data, self._encoding)
        text = decode(data.removeprefix(BOM), 0, note)
        if not text or text.isspace():
            self._bad.dropped[EMPTY] += 1
            return no_records(None)
        return Block([text], [0], None)

    def close(self) -> None:
        self._files.close()


def file_spans(files: list[FileEntry], max_bytes: int) -> list[Span]:
    """One span a file; one that is too long to be read weighs nothing."""
    return [
        Span(index, 0, ENDLESS if is_compressed(file.path) else file.size, file.size if file.size <= max_bytes else 1)
        for index, file in enumerate(files)
        if file.size
    ]
