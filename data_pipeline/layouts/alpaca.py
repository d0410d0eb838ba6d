"""Stanford Alpaca's form of instructions: `instruction`, `input` and `output`; with earlier turns in `history`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from data_pipeline.layouts.layout import TARGET, TEXT, Layout, Record, dialogue


class Alpaca(Layout):
    """{"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."], ...]}

    The input, where there is one, stands behind the instruction on a line of its own. The text is the instruction with
    its input, and the target the output, for objective seq2seq.
    """

    name = "alpaca"
    gives = frozenset({"messages", TARGET})
    fields = ("instruction", "input", "output", "system", "history")

    def lacking(self, present: Collection[str]) -> str | None:
        return next((field for field in ("instruction", "output") if field not in present), None)

    def convert(self, record: Record) -> dict[str, Any]:
        parts = [record.get("instruction"), record.get("input") or None]
        texts = [part for part in parts if part is not None]
        asked: Any = "\n".join(texts) if all(isinstance(text, str) for text in texts) else texts
        system, history = record.get("system"), record.get("history") or []
        messages = [{"role": "system", "content": system}] if system else []
        for turn in history if isinstance(history, list) else [history]:
            pair = turn if isinstance(turn, list) and len(turn) == 2 else [turn, None]
            messages += [
                {"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": record.get("output")}]
        return {**dialogue(messages), TEXT: asked, TARGET: record.get("output")}
