"""JSON files of one value."""

from __future__ import annotations

from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings, span_limit
from data_pipeline.sources.readers.parsed import ParsedReader, json_parser
from data_pipeline.sources.readers.storage import ByteSources, Files


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    reader = ParsedReader(ByteSources(Files()), json_parser(source.records), extractor, lines=False)
    return lambda: reader.spans(files, span_limit(files, settings)), reader
