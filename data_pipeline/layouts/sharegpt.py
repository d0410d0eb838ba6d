"""ShareGPT's form of dialogues: `conversations`, a list of objects with `from` and `value`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from data_pipeline.layouts.layout import Layout, Record, dialogue

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""Who speaks, by what such data call it."""


class ShareGPT(Layout):
    """{"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}"""

    name = "sharegpt"
    gives = frozenset({"messages"})
    fields = ("conversations", "system")

    def lacking(self, present: Collection[str]) -> str | None:
        return None if "conversations" in present else "conversations"

    def convert(self, record: Record) -> dict[str, Any]:
        turns, system = record.get("conversations"), record.get("system")
        if not isinstance(turns, list):
            return dialogue(turns)
        first = [{"role": "system", "content": system}] if system else []
        return dialogue([*first, *map(_message, turns)])


def _message(turn: Any) -> Any:
    if not isinstance(turn, dict) or not {"from", "value"} & turn.keys():
        return turn
    speaker = turn.get("from")
    role = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    return {"role": role, "content": turn.get("value"), **weight}
