"""Preferences in dialogues: what was said, and answers to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from data_pipeline.layouts.layout import Layout, Record, dialogue
from data_pipeline.layouts.sharegpt import ShareGPT

_GIVEN = ("prompt", "messages", "conversations")
_PROMPTS = (*_GIVEN, "system")


class Preference(Layout):
    """{"prompt": [...], "chosen": ..., "rejected": ...}

    The prompt is a text or messages (also called `messages`, or `conversations` as in ShareGPT), the answers are texts,
    messages, or lists of messages. Without a prompt the lists of both answers begin with it.
    """

    name = "preference"
    gives = frozenset({"messages", "chosen", "rejected"})
    fields = (*_PROMPTS, "chosen", "rejected")

    def lacking(self, present: Collection[str]) -> str | None:
        return next((field for field in ("chosen", "rejected") if field not in present), None)

    def convert(self, record: Record) -> dict[str, Any]:
        chosen, rejected = (_messages(record.get(name)) for name in ("chosen", "rejected"))
        prompt = _prompt(record)
        if prompt is None:
            prompt = chosen[:-1] if isinstance(chosen, list) else []
            if isinstance(rejected, list) and rejected[: len(prompt)] == prompt:
                rejected = rejected[len(prompt) :]
            chosen = chosen[len(prompt) :] if isinstance(chosen, list) else chosen
            if not prompt and not record.keys() & set(_GIVEN):
                prompt = None
        return {**dialogue(prompt), "chosen": _answer(chosen), "rejected": _answer(rejected)}


class Judged(Layout):
    """{"prompt": [...], "completion": ..., "label": true}: as layout preference, with one answer and what is thought of
    it."""

    name = "judged"
    gives = frozenset({"messages", "answer", "label"})
    fields = (*_PROMPTS, "completion", "label")

    def lacking(self, present: Collection[str]) -> str | None:
        return next((field for field in ("completion", "label") if field not in present), None)

    def convert(self, record: Record) -> dict[str, Any]:
        answer, prompt = _messages(record.get("completion")), _prompt(record)
        if prompt is None and isinstance(answer, list):
            prompt, answer = answer[:-1], answer[-1:]
        return {**dialogue(prompt), "answer": _answer(answer), "label": record.get("label")}


def _prompt(record: Record) -> Any:
    """The messages before the answers; None: there are none of their own."""
    given = next((record[name] for name in _GIVEN if record.get(name)), None)
    if given is None:
        return None
    found = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    system = record.get("system")
    return [{"role": "system", "content": system}, *found] if system and isinstance(found, list) else found


def _messages(value: Any) -> Any:
    """Messages, or one of them, in OpenAI's form."""
    one = isinstance(value, dict)
    turns = [value] if one else value
    if not isinstance(turns, list):
        return value
    return ShareGPT().convert({"conversations": turns})["messages"]


def _answer(value: Any) -> Any:
    """The text of a last message of the assistant; anything else as it is, to be refused."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        message = value[0]
        return message.get("content") if message.get("role") == "assistant" else message
    return value
