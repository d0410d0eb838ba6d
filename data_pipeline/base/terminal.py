"""What the user reads on a terminal, where control characters of models and files could move the cursor, rename the
window or hide what is written."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 without tab and newline, DEL, C1, and what turns the direction of writing."""


def visible(text: str) -> str:
    r"""Control characters as people write them, such as `\x1b` and `\u202e`; tabs and newlines stay."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def visible_json(text: str) -> str:
    r"""JSON with `\u009b` for each control character that JSON itself lets stand, so that it says the same."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def for_stream(text: str, stream: Any) -> str:
    """Text as `stream` should get it: `visible` on a terminal, unchanged in a file or a pipe."""
    return visible(text) if stream.isatty() else text


def tell(text: str) -> None:
    """One line for the user, who reads stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def warn(sentence: str, shown: bool = True) -> None:
    """Warn the user, in the log too; `shown`: whether on stderr."""
    logging.getLogger("llmscale").warning(sentence)
    if shown:
        tell(f"warning: {sentence}")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
