"""How much of a text repeats itself: the measures of Rae et al. 2021 ("Gopher", section A1.1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.cleaning.config import RepetitionStep
from data_pipeline.cleaning.text import EXAMINED, is_chinese, split_lines, split_paragraphs, split_words

CHARACTERS_PER_WORD = 2
"""n words are 2 n characters of Chinese, whose words have between one and two characters. With n characters, ordinary
scientific abstracts would break the paper's limits."""


def reject_repetition(config: RepetitionStep) -> Callable[[str], str | None]:
    """The filter; see `RepetitionStep`."""
    return lambda text: next((rule for rule, broken in _rules(text[:EXAMINED], config) if broken), None)


def _rules(text: str, config: RepetitionStep) -> Iterator[tuple[str, bool]]:
    """Each rule and whether the text breaks it."""
    chinese = is_chinese(text)
    fraction, characters = duplicate_fractions(split_lines(text, chinese))
    yield "duplicate lines", fraction > config.duplicate_line_fraction
    yield "characters in duplicate lines", characters > config.duplicate_line_character_fraction
    fraction, characters = duplicate_fractions(split_paragraphs(text))
    yield "duplicate paragraphs", fraction > config.duplicate_paragraph_fraction
    yield "characters in duplicate paragraphs", characters > config.duplicate_paragraph_character_fraction
    words = split_words(text, chinese)
    step = CHARACTERS_PER_WORD if chinese else 1
    if len(words) < max(1, config.min_words * step):
        return
    limits = (config.top_ngram_character_fraction, config.duplicate_ngram_character_fraction)
    longest = max([0, *limits[0], *limits[1]])
    for ngrams in itertools.islice(repeated_ngrams(words, step), longest):
        top, repeats = (limit.get(ngrams.n, 1.0) for limit in limits)
        yield f"top {ngrams.n}-gram", top < 1 and ngrams.top_fraction() > top
        yield f"duplicate {ngrams.n}-grams", repeats < 1 and ngrams.duplicate_fraction() > repeats


def duplicate_fractions(parts: list[str]) -> tuple[float, float]:
    """Fraction of the parts that occurred before, and of the characters (without whitespace) within them."""
    seen: set[str] = set()
    duplicates = characters = total = 0
    for part in parts:
        size = sum(map(len, part.split()))
        total += size
        if part in seen:
            duplicates += 1
            characters += size
        seen.add(part)
    return duplicates / max(1, len(parts)), characters / max(1, total)


class RepeatedNgrams(NamedTuple):
    """The n-grams of a text that occur more than once."""

    n: int
    """Words; or pairs of Chinese characters."""
    width: int
    """Entries of `lengths` that an n-gram spans."""
    starts: np.ndarray
    """Where they start, ascending: int64 (occurrences,)."""
    numbers: np.ndarray
    """Which of them starts there, from 0: int64 (occurrences,)."""
    lengths: np.ndarray
    """Characters of each word of the text: int64 (words,)."""

    def top_fraction(self) -> float:
        """Fraction of the characters within the n-gram that occurs most often; of several, within the one with the
        most characters, and of those the first."""
        if not len(self.starts):
            return 0.0
        counts = np.bincount(self.numbers)[self.numbers]
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        sizes = ends[self.starts + self.width] - ends[self.starts]
        top = np.argmax(np.where(counts == counts.max(), sizes, -1))
        return self._covered(self.starts[self.numbers == self.numbers[top]])

    def duplicate_fraction(self) -> float:
        """Fraction of the characters within n-grams that occurred before, each character counted once."""
        occurrences = np.arange(len(self.starts))
        first = np.empty_like(occurrences)
        first[self.numbers[::-1]] = occurrences[::-1]  # of several values for one place, the last one stays
        return self._covered(self.starts[first[self.numbers] < occurrences])

    def _covered(self, starts: np.ndarray) -> float:
        if not len(starts):
            return 0.0
        edges = np.zeros(len(self.lengths) + 1, np.int64)
        edges[starts] += 1
        edges[starts + self.width] -= 1
        return float(self.lengths[np.cumsum(edges[:-1]) > 0].sum() / self.lengths.sum())


def repeated_ngrams(words: list[str], step: int = 1) -> Iterator[RepeatedNgrams]:
    """Repeated n-grams of n = 1, 2, ... times `step` words, without end.

    An n-gram that is repeated begins with a repeated (n-1)-gram, so that only those are compared; and n-grams are
    compared by the number of that beginning and of what follows, so that no hash can collide.
    """
    table = {word: number for number, word in enumerate(dict.fromkeys(words))}
    numbers = np.fromiter(map(table.__getitem__, words), np.int64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    units = numbers
    for place in range(1, step):  # numbers of the runs of `step` words that start at each word
        units = np.unique(units[: len(words) - place] * len(table) + numbers[place:], return_inverse=True)[1]
    starts = np.arange(len(units))
    keys = units
    for n in itertools.count(1):
        keys, counts = np.unique(keys, return_inverse=True, return_counts=True)[1:]
        repeated = (counts > 1)[keys]
        starts, keys = starts[repeated], (np.cumsum(counts > 1) - 1)[keys[repeated]]
        yield RepeatedNgrams(n, n * step, starts, keys, lengths)
        inside = starts + n * step < len(units)
        starts = starts[inside]
        # At most EXAMINED of each, so their product stays below 2^40.
        keys = keys[inside] * (len(units) + 1) + units[starts + n * step]
