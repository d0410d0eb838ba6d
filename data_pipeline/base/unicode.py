"""Unicode's normal forms in time by the size of a text.

Python sorts the marks behind a letter by insertion, which takes the square of their number: minutes for a hundred
thousand of them, which no language writes but broken and hostile documents hold.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from typing import Literal

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

LONG_RUN = 512
"""Fewer marks in a row take no time."""
_BECOME_MARKS: dict[Form, str] = {"NFD": "\u0f73\u0f75\u0f81", "NFKD": "\u0f73\u0f75\u0f81\uff9e\uff9f"}
"""Characters that are no marks (of combining class 0), but that decompose into nothing else."""


def normalize(form: Form, text: str) -> str:
    """What `unicodedata.normalize` gives (Unicode Standard Annex 15)."""
    if holds_long_run(form, text):
        text = _long_runs(_decomposed(form)).sub(lambda run: _in_order(form, run[0]), text)
    return unicodedata.normalize(form, text)


def holds_long_run(form: Form, text: str) -> bool:
    """Whether a text holds `LONG_RUN` characters in a row that are marks in the decomposition of a form."""
    decomposed = _decomposed(form)
    # Of most texts those that stand as far apart tell that they do not.
    if text.isascii() or not any(_is_mark(decomposed, character) for character in text[LONG_RUN - 1 :: LONG_RUN]):
        return False
    return _long_runs(decomposed).search(text) is not None


def _decomposed(form: Form) -> Form:
    return "NFKD" if "K" in form else "NFD"


def _is_mark(decomposed: Form, character: str) -> bool:
    return unicodedata.combining(character) > 0 or character in _BECOME_MARKS[decomposed]


def _in_order(form: Form, run: str) -> str:
    """Marks decomposed one by one, and in their canonical order (The Unicode Standard, section 3.11, D109)."""
    marks = "".join(unicodedata.normalize(_decomposed(form), mark) for mark in run)
    return "".join(sorted(marks, key=unicodedata.combining))


@functools.cache
def _long_runs(decomposed: Form) -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if _is_mark(decomposed, c))
    return re.compile(f"[{re.escape(marks)}]{{{LONG_RUN},}}")
