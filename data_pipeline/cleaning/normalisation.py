"""Steps that change the characters of a text. Applying one twice is the same as applying it once."""

from __future__ import annotations

import re
from collections.abc import Callable

from data_pipeline.base.unicode import normalize
from data_pipeline.cleaning.config import ControlCharactersStep, UnicodeStep, WhitespaceStep
from data_pipeline.cleaning.text import HAN, LINE_BREAK

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # C0 and C1 less tab, newline and the line breaks
    "\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    f"{_NONCHARACTERS}]"
)
# Only where a joiner follows ASCII, Chinese or nothing is it certain to join nothing.
_IDLE_JOINER = re.compile(f"(?<![^\x00-\x7f\u3000-\u303f\uff00-\uffef{HAN}])[\u200c\u200d]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")


def normalise_unicode(config: UnicodeStep) -> Callable[[str], str]:
    """The normal form of Unicode Standard Annex 15, full-width forms first where they are to go."""
    table: dict[int, int] = {}
    if config.half_width != "keep":
        table = {full: half for full, half in _FULL_WIDTH.items() if config.half_width == "all" or chr(half).isalnum()}

    def change(text: str) -> str:
        # An ASCII letter composes with a following accent where its full-width form does not.
        return normalize(config.form, text.translate(table) if table and not text.isascii() else text)

    return change


def strip_control_characters(config: ControlCharactersStep) -> Callable[[str], str]:
    """See `ControlCharactersStep`; line breaks as Unicode section 5.8 lists them."""
    broken, instead = (_BROKEN, "") if config.replacement_character == "remove" else (_SURROGATE, "\ufffd")

    def change(text: str) -> str:
        if _all_visible(text):
            return text
        text = _INVISIBLE.sub("", LINE_BREAK.sub("\n", text))
        if text.isascii():
            return text
        return _IDLE_JOINER.sub("", broken.sub(instead, text))

    return change


def _all_visible(text: str) -> bool:
    """Whether a text certainly holds nothing to strip; ten times as fast as looking for it."""
    for usual in "\n\t\u3000\xa0":
        text = text.replace(usual, "")
    return text.isprintable() and "\ufffd" not in text


def reject_broken_encoding(config: ControlCharactersStep) -> Callable[[str], str | None] | None:
    """The filter half of the control character step."""
    if config.replacement_character != "drop":
        return None
    return lambda text: "replacement character" if _BROKEN.search(text) else None


def normalise_whitespace(config: WhitespaceStep) -> Callable[[str], str]:
    """See `WhitespaceStep`; whitespace is what Unicode calls so."""
    too_many = re.compile(rf"\n{{{config.max_blank_lines + 2},}}")
    newlines = "\n" * (config.max_blank_lines + 1)

    def line(text: str) -> str:
        words = " ".join(text.split())
        if config.keep_indentation and words:
            return text[: len(text) - len(text.lstrip())] + words
        return words

    def change(text: str) -> str:
        lines = "\n".join(map(line, LINE_BREAK.sub("\n", text).split("\n")))
        return too_many.sub(newlines, lines).strip("\n")

    return change
