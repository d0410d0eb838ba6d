"""JSON lines."""

from __future__ import annotations

from data_pipeline.base.encodings import UTF8
from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.base import Span
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.json_layout import require_json_lines
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings, span_limit
from data_pipeline.sources.readers.separated import JsonParser, SeparatedReader, byte_spans
from data_pipeline.sources.readers.storage import ByteSources, Files


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    sources = ByteSources(Files(), source.encoding or UTF8)

    def spans() -> list[Span]:
        for file in files:
            require_json_lines(sources, file, extractor.fields, settings.max_document_bytes)
        return byte_spans(sources, files, span_limit(files, settings))

    return spans, SeparatedReader(sources, "\n", JsonParser(extractor), extractor.bad, settings.max_document_bytes)
