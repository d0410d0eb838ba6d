"""CoNLL's columns."""

from __future__ import annotations

from data_pipeline.base.encodings import UTF8
from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings, span_limit
from data_pipeline.sources.readers.parsed import ParsedReader, conll_parser
from data_pipeline.sources.readers.storage import ByteSources, Files


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    sources = ByteSources(Files(), source.encoding or UTF8)
    reader = ParsedReader(sources, conll_parser(sources.encoding), extractor, lines=True)
    return lambda: reader.spans(files, span_limit(files, settings)), reader
