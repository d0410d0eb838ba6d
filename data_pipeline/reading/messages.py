"""The messages of a dialogue, as training data hold them: a list of objects with a role and a content."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.base.encodings import is_unicode

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak."""


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: str
    """One of `ROLES`."""
    text: str
    weight: float | None = None
    """How much each of its tokens counts in training; None: as its role does."""


def read_messages(value: Any) -> list[Message]:
    """The messages of a record.

    Args:
        value: OpenAI's form: a list of objects with `role`, `content` (a text, or a list of parts `{"type": "text",
            "text": ...}`), and perhaps `weight`.

    Raises:
        ValueError: it is something else; says what, and the fix.
    """
    if value is None:
        raise ValueError("the record has no messages; give it some, or leave the record out")
    if not isinstance(value, list):
        raise ValueError(
            f"messages is {_shown(value)}, but must be a list of objects with role and content; correct it"
        )
    if not value:
        raise ValueError("messages is empty; give it a user's and an assistant's turn, or leave the record out")
    return [_message(number, each) for number, each in enumerate(value, start=1)]


def merged_system(messages: Sequence[Message]) -> list[Message]:
    """The dialogue with its system message in front of the first user's, for templates that know no such role."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return list(messages)
    system, first, *rest = messages
    return [Message("user", f"{system.text}\n\n{first.text}", first.weight), *rest]


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ValueError(
            f"message {number} is {_shown(value)}, but must be an object with role and content; correct it"
        )
    role = value.get("role")
    if role not in ROLES:
        raise ValueError(
            f"message {number} has the role {_shown(role)}, but roles are {', '.join(ROLES)}; correct the record"
        )
    if value.get("tool_calls") or value.get("function_call"):
        raise ValueError(
            f"message {number} calls a tool ({_shown(value.get('tool_calls') or value['function_call'])}), but only"
            f" texts are read; write the call into its content, or leave the record out"
        )
    return Message(role, _text(number, value.get("content")), _weight(number, value.get("weight")))


def _text(number: int, content: Any) -> str:
    parts = content if isinstance(content, list) else [content]
    found = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise ValueError(
            f"message {number} has the content {_shown(content)}, but only texts and lists of parts of type text are"
            f" read; correct the record"
        )
    joined = "".join(texts)
    if not is_unicode(joined):
        raise ValueError(f"message {number} has half of a character in its content; correct the record")
    return joined


def _weight(number: int, weight: Any) -> float | None:
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(
            f"message {number} has the weight {_shown(weight)}, but it must be a number from 0; correct it"
        )
    return float(weight)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
