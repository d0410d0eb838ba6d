"""Porter's stemmer of English (Porter 1980, An algorithm for suffix stripping) as NLTK extends it, which ROUGE uses.

Conditions are the paper's: m is the number of vowel-consonant sequences of a stem, *v* a vowel in it, *d a doubled
consonant at its end, *o consonant, vowel, consonant other than w, x, y there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_WHOLE = {
    **{"skies": "sky", "dying": "die", "lying": "lie", "tying": "tie"},
    **{"innings": "inning", "outings": "outing", "cannings": "canning"},
    **{word: word for word in ["sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed"]},
}
"""Words that the steps would spoil."""

_STEP_2 = (
    "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble alli:al entli:ent eli:e ousli:ous ization:ize "
    "ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble fulli:ful"
)
_STEP_3 = "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"
_STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"


def stem(word: str) -> str:
    """The stem of a word in lower case."""
    if word in _WHOLE:
        return _WHOLE[word]
    if len(word) <= 2:
        return word
    for step in (_plural, _past, _final_y, _step_2, _step_3, _step_4, _final_e, _final_l):
        word = step(word)
    return word


def _shape(text: str) -> str:
    """c for each consonant, v for each vowel; y is a vowel behind a consonant."""
    shape: list[str] = []
    for letter in text:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == ["c"])
        shape.append("v" if vowel else "c")
    return "".join(shape)


def _measure(text: str) -> int:
    return _shape(text).count("vc")


def _doubled(text: str) -> bool:
    """*d"""
    return len(text) > 1 and text[-1] == text[-2] and _shape(text)[-1] == "c"


def _short(text: str) -> bool:
    """*o; and a vowel and a consonant alone."""
    shape = _shape(text)
    return (shape[-3:] == "cvc" and text[-1] not in "wxy") or shape == "vc"


def _first(word: str, suffixes: Iterable[tuple[str, str]], holds: Callable[[str], bool]) -> str:
    """The first suffix that the word has is replaced, where the condition holds of the stem."""
    for suffix, replacement in suffixes:
        if word.endswith(suffix):
            rest = word[: len(word) - len(suffix)]
            return rest + replacement if holds(rest) else word
    return word


def _plural(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return _first(word, [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")], lambda rest: True)


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    ending = re.search("(ed|ing)$", word)
    rest = word[: ending.start()] if ending else ""
    if "v" not in _shape(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if _doubled(rest):
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _short(rest) else rest


def _final_y(word: str) -> str:
    return _first(word, [("y", "i")], lambda rest: len(rest) > 1 and _shape(rest)[-1] == "c")


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]):
        return _step_2(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) else word
    return _first(word, _pairs(_STEP_2), lambda rest: _measure(rest) > 0)


def _step_3(word: str) -> str:
    return _first(word, _pairs(_STEP_3), lambda rest: _measure(rest) > 0)


def _step_4(word: str) -> str:
    def holds(rest: str) -> bool:
        ion = word.endswith("ion")
        return _measure(rest) > 1 and (not ion or rest[-1] in "st")

    return _first(word, ((suffix, "") for suffix in _STEP_4.split()), holds)


def _final_e(word: str) -> str:
    rest = word[:-1]
    measure = _measure(rest)
    goes = word.endswith("e") and (measure > 1 or (measure == 1 and not _short(rest)))
    return rest if goes else word


def _final_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _pairs(table: str) -> list[tuple[str, str]]:
    return [(suffix, replacement) for suffix, _, replacement in (row.partition(":") for row in table.split())]
