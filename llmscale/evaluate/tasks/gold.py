"""Which of several answers or labels is right, as data sets say it: by place, letter, text or a name of their own."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from llmscale.evaluate.tasks.settings import Mistake
from llmscale.evaluate.tasks.templates import Text


def _checked_gold(value: Any) -> Any:
    if type(value) is not int and not isinstance(value, str):
        raise ValueError(f"it is {value!r}, but a place or a template is needed; put it in quotes")
    return value if type(value) is int else _TEMPLATE.validate_python(value)


_TEMPLATE: TypeAdapter[str] = TypeAdapter(Text)
Gold = Annotated[int | str, BeforeValidator(_checked_gold)]
"""A place, the same for all records, or a template."""


class GoldSettings(BaseModel):
    """Settings of kinds that have right answers."""

    gold_as: Literal["index", "letter", "text"] = "index"
    """What `gold` is. index: a place, from 0; `{{ label | int - 1 }}` where the data count from 1. letter: A is place
    0. text: the answer itself, without `answer_prefix`."""
    gold_labels: dict[str, int] = {}
    """The place that each value of `gold` stands for, such as `{"positive": 1, "negative": 0}`, whatever it is."""


class _How(Protocol):
    gold_as: Literal["index", "letter", "text"]
    gold_labels: dict[str, int]


def places_of(gold: Any, answers: list[str], how: _How) -> tuple[int, ...]:
    """The places of the right ones among `answers`.

    Raises:
        Mistake: there is none, or one that is not among the answers.
    """
    golds = gold if isinstance(gold, list) else [gold]
    if not golds:
        raise Mistake("gold is an empty list; leave the record out, or correct gold")
    return tuple(dict.fromkeys(_place(each, answers, how) for each in golds))


def _place(gold: Any, answers: list[str], how: _How) -> int:
    place = _named(gold, answers, how)
    if not 0 <= place < len(answers):
        raise Mistake(
            f"gold is {gold!r}, which is place {place}, but there are {len(answers)} answers, 0 to {len(answers) - 1};"
            f" correct the data, or gold"
        )
    return place


def _named(gold: Any, answers: list[str], how: _How) -> int:
    word = gold.strip() if isinstance(gold, str) else str(int(gold) if isinstance(gold, bool) else gold)
    if how.gold_labels:
        if word not in how.gold_labels:
            raise Mistake(
                f"gold is {gold!r}, but gold_labels are {', '.join(how.gold_labels)}; add it, or correct the data"
            )
        return how.gold_labels[word]
    if how.gold_as == "text":
        if gold not in answers:
            raise Mistake(f"gold is {gold!r}, which is none of the answers {answers}; correct the data, or gold")
        return answers.index(gold)
    if how.gold_as == "letter":
        if len(word) != 1 or word.upper() not in string.ascii_uppercase:
            raise Mistake(f"gold is {gold!r}, but gold_as is letter, A to Z; correct the data, or gold_as")
        return string.ascii_uppercase.index(word.upper())
    try:
        return int(word)
    except ValueError:
        raise Mistake(
            f"gold is {gold!r}, but gold_as is index, a number from 0; correct the data, or set gold_as or gold_labels"
        ) from None
