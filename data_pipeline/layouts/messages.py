"""OpenAI's form of dialogues: `messages`, a list of objects with `role` and `content`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from data_pipeline.layouts.layout import Layout, Record, dialogue


class Messages(Layout):
    """{"messages": [{"role": "user", "content": "..."}, ...]}"""

    name = "messages"
    gives = frozenset({"messages"})
    fields = ("messages",)

    def lacking(self, present: Collection[str]) -> str | None:
        return None if "messages" in present else "messages"

    def convert(self, record: Record) -> dict[str, Any]:
        return dialogue(record.get("messages"))
