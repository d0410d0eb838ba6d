"""Rows of fields between delimiters."""

from __future__ import annotations

from data_pipeline.base.encodings import UTF8
from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.delimited import DelimitedReader
from data_pipeline.sources.readers.dialect import Dialect
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.headerless import HeaderlessReader
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings, span_limit
from data_pipeline.sources.readers.storage import ByteSources, Files


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    delimiter = source.delimiter or source.about.delimiter or ","
    asked = "quote" in source.model_fields_set
    guessed = not (source.quote or asked or source.columns)
    dialect = Dialect(delimiter, source.quote, source.escape or "", guessed=guessed)
    sources = ByteSources(Files(), source.encoding or UTF8)
    given = (sources, dialect, extractor, extractor.bad)
    reader = HeaderlessReader(*given, source.columns) if source.columns else DelimitedReader(*given)
    return lambda: reader.spans(files, span_limit(files, settings)), reader
