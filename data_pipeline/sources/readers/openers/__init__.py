"""What reads the files of each kind of source: one file a kind, of the same name as in `data_pipeline.kinds`."""

from __future__ import annotations

import importlib

from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.openers.opener import Opened, ReadSettings

__all__ = ["Opened", "ReadSettings", "opened"]


def opened(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> Opened:
    """What finds the spans of a source's files, and their reader."""
    opener = importlib.import_module(f"{__name__}.{source.kind}")
    return opener.opened(source, files, settings, extractor)  # type: ignore[no-any-return]
