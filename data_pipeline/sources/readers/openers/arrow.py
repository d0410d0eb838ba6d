"""Arrow IPC files and streams."""

from __future__ import annotations

from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.arrow import ArrowReader, arrow_spans
from data_pipeline.sources.readers.base import Span
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings
from data_pipeline.sources.readers.storage import Files


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of the files, and their reader."""
    stored = Files()

    def spans() -> list[Span]:
        return [span for i, file in enumerate(files) for span in arrow_spans(stored, file, i, extractor.fields)]

    return spans, ArrowReader(stored, extractor, extractor.bad)
