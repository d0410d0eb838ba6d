"""What a kind of sources declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceKind:
    """What the config, the reading of files and evaluation ask of a kind of sources."""

    description: str
    """What its files are."""
    has_fields: bool = True
    """Whether records have fields with names."""
    is_text: bool = False
    """Whether files are text, in an encoding that may be given, of records that stand at lines."""
    is_plain: bool = False
    """Whether a file is documents and nothing else; settings say whether one is the file, a line, or what stands
    between delimiters."""
    delimiter: str | None = None
    """What stands between the fields of a row where none is given; None: there are no rows of fields as text."""
    is_nested: bool = False
    """Whether records lie within one value, as `records` says."""
    in_memory: bool = False
    """Whether a file is held in memory while it is read."""
    is_streamed: bool = False
    """Whether a library finds and reads what there is."""
    is_tokenised: bool = False
    """Whether it holds token ids, not text."""
    format: str | None = None
    """What its files are called where their first bytes tell."""
    join: str | None = None
    """What stands between the words of a field that holds a list of them, where nothing is given; None: no lists."""
    endings: tuple[str, ...] = ()
    """Ends of the names of its files."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a source that it takes otherwise."""
