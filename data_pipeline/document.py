"""A document of a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Document(NamedTuple):
    """A text and where it comes from."""

    id: int
    """64-bit hash of file number, file name and position."""
    file: int
    """Index into `Corpus.files`."""
    position: int
    """Byte offset of a line, row of a Parquet file, example of a shard; 0 for a whole file."""
    text: str
    target: str | None = None
    """The second text of a pair, where the source has a `target_field`."""
    values: Mapping[str, Any] | None = None
    """Values of the source's other `fields`, by what the objective calls them; null where a record has none."""
    tokens: np.ndarray | None = None
    """(n,) int32: the ids of the text, where the objective has read it already."""
