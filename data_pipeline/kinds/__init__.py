"""The kinds of sources: one file each, with what the rest asks of it.

Facts only. What reads files of a kind is the file of the same name in `data_pipeline.sources.readers.openers`. A file
with a KIND is a kind, by its name; no other file knows of it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Literal

from data_pipeline.base.modules import module_names
from data_pipeline.kinds.kind import SourceKind

__all__ = ["NAMES", "KindName", "SourceKind", "description", "kinds_by_ending", "source_kind"]
NAMES = module_names(__name__, besides=("kind",))
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[NAMES]


@cache
def source_kind(name: str) -> SourceKind:
    """What the file of a kind says of it."""
    return importlib.import_module(f"{__name__}.{name}").KIND  # type: ignore[no-any-return]


def kinds_by_ending() -> dict[str, str]:
    """Kinds of files by the ends of their names."""
    return {ending: name for name in NAMES for ending in source_kind(name).endings}


def description() -> str:
    """What each kind is, for the setting that names one."""
    whole = " and ".join(name for name in NAMES if source_kind(name).in_memory)
    packed = " and ".join(name for name in NAMES if source_kind(name).format)
    return (
        f"{' '.join(f'{name}: {source_kind(name).description}.' for name in NAMES)} Files of kinds {whole} are held in"
        f" memory while they are read. All but {packed} may be compressed: `.gz` or `.zst`."
    )
