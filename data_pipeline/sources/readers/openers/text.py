"""Plain text: files, lines, or what stands between delimiters."""

from __future__ import annotations

from data_pipeline.base.encodings import UTF8
from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings, span_limit, target_files
from data_pipeline.sources.readers.parallel import ParallelReader
from data_pipeline.sources.readers.separated import SeparatedReader, TextParser, byte_spans
from data_pipeline.sources.readers.storage import ByteSources, Files
from data_pipeline.sources.readers.whole_files import FileReader, file_spans


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    bad, limit = extractor.bad, settings.max_document_bytes
    encoding = source.encoding or UTF8
    if source.whole_files:
        return lambda: file_spans(files, limit), FileReader(Files(), bad, limit, encoding)
    sources = ByteSources(Files(), encoding)
    if source.target_paths:
        targets = target_files(source, "data.sources")
        pairs = ParallelReader(sources, files, targets, extractor)
        return lambda: pairs.spans(files, span_limit(files, settings)), pairs
    parser = TextParser(bad, limit, lines=source.delimiter is None)
    reader = SeparatedReader(sources, source.delimiter or "\n", parser, bad, limit)
    return lambda: byte_spans(sources, files, span_limit(files, settings)), reader
