"""The words of texts, in scripts with and without spaces between them."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that put no space between words."""
_LONGEST = 4
"""Characters of a word without spaces."""
_RUN = 500
"""Characters that are segmented at once."""
_MOST = 2_000_000
"""Characters that words are learned from."""
_LEAST = 4
"""Times that a word occurs."""
_COHESION = 8.0
"""By which factor a word is more frequent than its parts are by chance."""
_ENTROPY = 1.0
"""Nats of the characters around a word."""

Kind = Literal["unspaced", "letter", "other"]


class Words:
    """Splits texts into words, in lower case, without numbers and single letters: letters between spaces and
    punctuation, and where a script has no spaces what `Lexicon` learns of the texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts`: that the words of scripts without spaces are learned from."""
        runs: list[str] = []
        size = 0
        for text in texts:
            runs += [run for unspaced, run in _runs(text) if unspaced]
            size += len(text)
            if size > _MOST:
                break
        self._lexicon = Lexicon(runs)

    def split(self, text: str) -> list[str]:
        """The words of a text, in their order."""
        return [word for unspaced, run in _runs(text) for word in (self._lexicon.split(run) if unspaced else [run])]


def _runs(text: str) -> Iterator[tuple[bool, str]]:
    """Runs of letters, and whether they are of a script without spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    for kind, characters in itertools.groupby(text, _kind):
        run = "".join(characters)
        if kind == "unspaced":
            yield from ((True, run[start : start + _RUN]) for start in range(0, len(run), _RUN))
        elif kind == "letter" and len(word := run.strip("'’")) > 1:
            yield False, word


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Kind:
    number = ord(character)
    if any(first <= number <= last for first, last in _UNSPACED):
        return "unspaced"
    # Marks stand on or behind letters, and apostrophes in words.
    return "letter" if unicodedata.category(character)[0] in "LM" or character in "'’" else "other"


class Lexicon:
    """Words of scripts without spaces, by how they occur in texts themselves.

    A word is a string of up to four characters whose parts stand together far more often than by chance (Sproat and
    Shih 1990), and which many different characters precede and follow (Jin and Tanaka-Ishii 2006). A run is cut into
    the likeliest words and single characters.
    """

    def __init__(self, runs: Sequence[str]) -> None:
        counts: Counter[str] = Counter()
        before: dict[str, Counter[str]] = {}
        behind: dict[str, Counter[str]] = {}
        for length in range(1, _LONGEST + 1):
            counts.update(run[place : place + length] for run in runs for place in range(len(run) - length + 1))
        self._total = max(sum(map(len, runs)), 1)
        cohesive = {text for text, count in counts.items() if len(text) > 1 and self._cohesive(text, count, counts)}
        for run in runs:
            for place, length in itertools.product(range(len(run)), range(2, _LONGEST + 1)):
                text = run[place : place + length]
                if len(text) == length and text in cohesive:
                    before.setdefault(text, Counter())[run[place - 1] if place else ""] += 1
                    behind.setdefault(text, Counter())[run[place + length : place + length + 1]] += 1
        words = {text for text in cohesive if min(_entropy(before[text]), _entropy(behind[text])) > _ENTROPY}
        self._costs = {
            text: -math.log(count / self._total) for text, count in counts.items() if len(text) == 1 or text in words
        }
        self._unknown = math.log(self._total) + 1

    def split(self, run: str) -> list[str]:
        """The words of a run."""
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, len(run) + 1):
            choices = []
            for start in range(max(0, end - _LONGEST), end):
                cost = self._costs.get(run[start:end], self._unknown if end - start == 1 else None)
                if cost is not None:
                    choices.append((best[start][0] + cost, start))
            best.append(min(choices))
        words, end = [], len(run)
        while end:
            start = best[end][1]
            words.append(run[start:end])
            end = start
        return words[::-1]

    def _cohesive(self, text: str, count: int, counts: Counter[str]) -> bool:
        if count < _LEAST:
            return False
        chance = max(counts[text[:cut]] * counts[text[cut:]] for cut in range(1, len(text)))
        return count * self._total > _COHESION * chance


def _entropy(neighbours: Counter[str]) -> float:
    """In nats. The ends of runs are all different neighbours."""
    total, ends = neighbours.total(), neighbours[""]
    inner = sum(count * math.log(total / count) for text, count in neighbours.items() if text)
    return (inner + ends * math.log(total)) / total
