"""The texts of items that are searched for, without what a task's template puts around them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from data_pipeline.reading.item import Item
from llmscale.evaluate.contamination.words import length_in_words, words_of

Part = Literal["question", "answer", "both"]
LEAST_WORDS = 5
"""A shorter text (8 characters of Chinese) does not tell one item from another."""

_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_Words = tuple[str, ...]


class Wanted(NamedTuple):
    """A text that is searched for."""

    item: int
    """Place in the list of items."""
    part: Part
    words: _Words
    answers: tuple[_Words, ...] = ()
    """Of a question: the right answers, any of which may follow it."""
    alone: bool = True
    """Whether the text by itself tells the item; not where several items have the same question."""


class Texts(NamedTuple):
    """What is searched for."""

    wanted: list[Wanted]
    short: list[int]
    """Places of items whose texts are too short to be found."""


def texts_of(items: Sequence[Item], templates: Sequence[str] = ("",)) -> Texts:
    """The texts of items.

    Args:
        items: without examples.
        templates: that their contexts were made by: one for all, or one for each answer.
    """
    contexts = [_without_frame(_context(item), templates[_right_place(item, len(templates))]) for item in items]
    rights = [[tuple(words_of(text).words) for text in _right(item)] for item in items]
    shared = Counter(contexts)
    wanted: list[Wanted] = []
    short: list[int] = []
    for place, (question, right) in enumerate(zip(contexts, rights, strict=True)):
        answers = list(dict.fromkeys(filter(None, right)))
        before = len(wanted)
        if length_in_words(question) >= LEAST_WORDS:
            alone = shared[question] == 1
            if alone or answers:
                wanted.append(Wanted(place, "question", question, tuple(answers), alone))
        else:
            whole = (Wanted(place, "both", question + answer) for answer in answers if question)
            wanted += [each for each in whole if length_in_words(each.words) >= LEAST_WORDS]
        longest = max(answers, key=len, default=())
        if length_in_words(longest) >= LEAST_WORDS:
            wanted.append(Wanted(place, "answer", longest))
        if len(wanted) == before:
            short.append(place)
    return Texts(wanted, short)


def shuffled(texts: Sequence[Wanted], count: int, seed: int = 0) -> list[list[Wanted]]:
    """Controls: the texts of items, each with its words in random order, as often as it takes for `count` of them.

    What is found of them is found by chance. A text whose words have no other order is left out.
    """
    by_item: dict[int, list[Wanted]] = {}
    for each in texts:
        by_item.setdefault(each.item, []).append(each)
    draw = random.Random(seed)
    controls: list[list[Wanted]] = []
    places = list(by_item)
    draw.shuffle(places)
    for number in range(count if places else 0):
        own = [_shuffled(each, draw) for each in by_item[places[number % len(places)]]]
        if kept := [each for each in own if each is not None]:
            controls.append(kept)
    return controls


def _shuffled(text: Wanted, draw: random.Random) -> Wanted | None:
    words = list(text.words)
    for _ in range(10):
        draw.shuffle(words)
        if tuple(words) != text.words:
            return text._replace(words=tuple(words))
    return None


def _context(item: Item) -> str:
    return item.contexts[_right_place(item, len(item.contexts))]


def _right_place(item: Item, count: int) -> int:
    """Place of the right answer among as many contexts, or 0."""
    return item.gold[0] if item.gold and item.gold[0] < count else 0


def _right(item: Item) -> list[str]:
    """Texts of the right answers; a text that is scored as a whole is its own."""
    if not item.answers:
        return list(item.references)
    return [item.answers[place] for place in item.gold] or list(item.answers[:1])


def _without_frame(text: str, template: str) -> _Words:
    """The words of a text without those that its template begins and ends with, such as "question" and "answer"."""
    words = words_of(text).words
    pieces = _TAG.split(template)
    front, back = words_of(pieces[0]).words, words_of(pieces[-1]).words
    if len(pieces) == 1:
        return tuple(words)
    if front and words[: len(front)] == front:
        words = words[len(front) :]
    if back and words[-len(back) :] == back:
        words = words[: -len(back)]
    return tuple(words)
