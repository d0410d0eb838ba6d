"""What every layout does: make of a record, as a file has it, the fields that objectives ask for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

TEXT, TARGET = "text", "target"
"""The text of a converted record, and the second text of a pair."""
Record = Mapping[str, Any]


class Layout(ABC):
    """A form of records."""

    name: ClassVar[str]
    gives: ClassVar[frozenset[str]]
    """What a converted record has besides its text, by what objectives call it; `target` where it has a second text."""
    fields: ClassVar[tuple[str, ...]]
    """Fields that records may have."""

    @abstractmethod
    def lacking(self, present: Collection[str]) -> str | None:
        """The first field that records with these fields lack; None: they have what is needed."""

    def described(self, present: Collection[str]) -> str | None:
        """What people are told of records with these fields; None: nothing that they do not know."""
        return None

    @abstractmethod
    def convert(self, record: Record) -> dict[str, Any]:
        """A record's text and what the layout gives. Fields that are null are absent. What makes no sense is given as
        it is, for the objective to refuse with its place."""


class AutoLayout(Layout):
    """Each record in the first layout of dialogues that it has the fields of."""

    name = "auto"
    gives = frozenset({"messages"})

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = layouts
        self.fields = tuple(dict.fromkeys(field for layout in layouts for field in layout.fields))  # type: ignore[misc]

    def found(self, present: Collection[str]) -> Layout | None:
        """The layout of records with these fields."""
        return next((layout for layout in self._layouts if layout.lacking(present) is None), None)

    def lacking(self, present: Collection[str]) -> str | None:
        return None if self.found(present) else " or ".join(str(layout.lacking(present)) for layout in self._layouts)

    def described(self, present: Collection[str]) -> str | None:
        found = self.found(present)
        return None if found is None else f"in layout {found.name}"

    def convert(self, record: Record) -> dict[str, Any]:
        layout = self.found(record)
        return dialogue(None) if layout is None else layout.convert(record)


def dialogue(messages: Any) -> dict[str, Any]:
    """A converted record of messages; its text is what cleaning and statistics see."""
    contents = (
        [message.get("content") for message in messages or () if isinstance(message, dict)] if _listed(messages) else []
    )
    text = "\n".join(content for content in contents if isinstance(content, str)).strip()
    return {TEXT: text or json.dumps(messages, ensure_ascii=False, default=str), "messages": messages}


def _listed(messages: Any) -> bool:
    return isinstance(messages, list)
