"""Finding texts in a stream of passages, in memory that does not grow with the stream.

A text is found in a document where at least half of its n-grams are, n being 13 words as in Brown et al. 2020
(appendix C), or all of them where the text is shorter. They ask for one 13-gram alone, which a quotation or a phrase of
a template has; Chowdhery et al. 2022 (section 8) ask for a share, as here. An answer follows a question where all of
its words do, at most `NEAR` words behind its end, in the same document.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmscale.evaluate.contamination.texts import Wanted
from llmscale.evaluate.contamination.words import Words, ngram_hashes, normalised, word_hashes, words_of

NGRAM = 13
"""Words of an n-gram."""
SHARE = 0.5
"""Of a text's n-grams that must be in one document."""
NEAR = 50
"""Most words between a question and its answer."""
_NGRAMS = 64
"""Most n-grams of a text that are looked for, evenly spread over it."""
_OPEN_DOCUMENTS = 100_000
"""Texts that are found in part, of which is remembered what was found."""
_STEPS = 1000
"""Most steps that are kept of a text."""


@dataclass
class Found:
    """Where a text was found."""

    steps: set[int] = field(default_factory=set)
    """The steps that saw it, or the last words of it: the first 1,000 that were found."""
    answered: set[int] = field(default_factory=set)
    """Of a question: the steps that saw a right answer behind it, likewise."""
    last: int = 0
    """The last step of all, 0 for none."""
    last_answered: int = 0

    def add(self, steps: Sequence[int]) -> None:
        self.last = max(self.last, *steps)
        self.steps.update(steps[: max(0, _STEPS - len(self.steps))])

    def add_answered(self, step: int) -> None:
        self.last_answered = max(self.last_answered, step)
        if len(self.answered) < _STEPS:
            self.answered.add(step)


@dataclass
class _Partial:
    """What a document has of a text."""

    ngrams: int = 0
    """A bit for each n-gram that was found."""
    steps: list[int] = field(default_factory=list)
    whole: bool = False


class _Hit(NamedTuple):
    text: int
    ngram: int
    """Its place in the text, in words."""
    place: int
    """Its place in the passage, in words."""


class Search:
    """Looks for texts in passages; one for all tasks."""

    def __init__(self, texts: Sequence[Wanted]) -> None:
        self.texts = texts
        self.found = [Found() for _ in texts]
        self._partial: OrderedDict[tuple[int, tuple[str, int]], _Partial] = OrderedDict()
        self._owners: dict[int, dict[int, list[tuple[int, int]]]] = {}
        for number, text in enumerate(texts):
            size = _size(text)
            hashes = ngram_hashes(word_hashes(text.words), [size])[size]
            for place in _places(text).tolist():
                self._owners.setdefault(size, {}).setdefault(int(hashes[place]), []).append((number, place))
        self._sorted = {size: np.sort(np.array(list(owners), np.uint64)) for size, owners in self._owners.items()}

    def add(self, step: int, document: tuple[str, int], before: str, through: str, whole: str) -> None:
        """Look at a passage.

        Args:
            step: that saw it; steps must not decrease.
            document: which document it is of.
            before: the text of the document before it that was seen.
            through: the same and the passage.
            whole: the same and the text after it that was seen.
        """
        text = normalised(whole)
        start, end = len(normalised(before)), len(normalised(through))
        words = words_of(text, is_normalised=True)
        hits = self._hits(words)
        if not hits:
            return
        for hit in hits:
            last = hit.place + _size(self.texts[hit.text]) - 1
            # Others were found when what they are in was passed.
            if words.ends[last] > start and words.starts[hit.place] < end:
                self._note(hit, step, document)
        self._look_for_answers(hits, words, step, document, start, end)

    def _hits(self, words: Words) -> list[_Hit]:
        hits: list[_Hit] = []
        for size, hashes in ngram_hashes(word_hashes(words.words), list(self._owners)).items():
            known = self._sorted[size]
            places = np.searchsorted(known, hashes)
            places[places == len(known)] = 0
            for place in np.flatnonzero(known[places] == hashes).tolist():
                owners = self._owners[size][int(hashes[place])]
                hits += [_Hit(text, ngram, place) for text, ngram in owners]
        return hits

    def _note(self, hit: _Hit, step: int, document: tuple[str, int]) -> None:
        found = self.found[hit.text]
        text = self.texts[hit.text]
        if len(text.words) <= NGRAM and text.part != "question":
            found.add([step])
            return
        key = (hit.text, document)
        partial = self._partial.setdefault(key, _Partial())
        self._partial.move_to_end(key)
        if len(self._partial) > _OPEN_DOCUMENTS:
            self._partial.popitem(last=False)
        if partial.whole:
            found.add([step])
            return
        partial.ngrams |= 1 << hit.ngram
        if len(partial.steps) < _STEPS and step not in partial.steps[-1:]:
            partial.steps.append(step)
        if partial.ngrams.bit_count() >= SHARE * len(_places(text)):
            partial.whole = True
            found.add(partial.steps)

    def _look_for_answers(
        self, hits: list[_Hit], words: Words, step: int, document: tuple[str, int], start: int, end: int
    ) -> None:
        """Note which questions are followed by an answer, some of it or of the question in characters [start, end)."""
        furthest: dict[tuple[int, int], int] = {}
        for hit in hits:
            text = self.texts[hit.text]
            partial = self._partial.get((hit.text, document))
            if text.part == "question" and text.answers and partial is not None and partial.whole:
                behind = hit.place + _size(text)
                key = (hit.text, hit.place - hit.ngram)
                furthest[key] = max(furthest.get(key, 0), behind)
        for (number, first), behind in furthest.items():
            text = self.texts[number]
            for answer in text.answers:
                limit = max(behind, first + len(text.words)) + NEAR
                place = _place_of(answer, words.words, behind, limit)
                if place is None:
                    continue
                # Of a question whose beginning is not in the passage the first word that is.
                began = words.starts[max(first, 0)]
                if words.ends[place + len(answer) - 1] > start and began < end:
                    self.found[number].add_answered(step)


def _size(text: Wanted) -> int:
    return min(NGRAM, len(text.words))


def _places(text: Wanted) -> npt.NDArray[np.int64]:
    """Where the n-grams of a text that are looked for begin."""
    count = len(text.words) - _size(text) + 1
    return np.arange(count) if count <= _NGRAMS else np.linspace(0, count - 1, _NGRAMS).round().astype(np.int64)


def _place_of(wanted: tuple[str, ...], words: list[str], start: int, limit: int) -> int | None:
    """The first place in [start, limit] at which the wanted words are."""
    last = min(limit, len(words) - len(wanted))
    return next((i for i in range(start, last + 1) if tuple(words[i : i + len(wanted)]) == wanted), None)
