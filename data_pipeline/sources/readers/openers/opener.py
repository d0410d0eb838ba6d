"""How the files of sources are opened, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.files import FileEntry, list_files
from data_pipeline.sources.readers.base import Reader, Span
from data_pipeline.sources.readers.storage import is_compressed

SMALLEST_SPAN = 1 << 12
"""Bytes below which a small source is not cut for the sake of many lanes."""
Opened = tuple[Callable[[], list[Span]], Reader]
"""What finds the spans, by reading of the files what it must, and the reader."""


class ReadSettings(NamedTuple):
    """How sources are cut and what is done about bad records."""

    span_bytes: int
    """Largest span of a line-oriented file."""
    lanes: int | None
    """Lanes that the spans are dealt to; None where they are not dealt."""
    max_document_bytes: int
    """A longer document is a bad record."""
    pages: bool = False
    """Whether web pages are to be read, since a cleaning step takes the text out of them."""


def target_files(source: SourceConfig, where: str, look: Callable[..., None] = lambda *shown: None) -> list[FileEntry]:
    """The files of targets of parallel ones. Raises UserError as `list_files`."""
    partners = source.model_copy(update={"paths": source.target_paths, "exclude": []})
    files = list_files(partners, 0, where, look)
    packed = next((file.path for file in files if is_compressed(file.path)), None)
    if packed is not None:
        raise UserError(f"{where}.target_paths: {packed} is compressed, but parallel files are read plain; unpack it")
    return files


def span_limit(files: list[FileEntry], settings: ReadSettings) -> int:
    """Most bytes of a span: a small source is cut into about four spans a lane."""
    if settings.lanes is None:
        return settings.span_bytes
    fair = -(-sum(file.size for file in files) // (4 * settings.lanes))
    return min(settings.span_bytes, max(SMALLEST_SPAN, fair))
