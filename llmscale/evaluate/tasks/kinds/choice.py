"""The model ranks the answers that a question has by their probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmscale.evaluate.tasks.gold import Gold, GoldSettings, places_of
from llmscale.evaluate.tasks.settings import Mistake, Question, TaskSettings, text_of, texts_of
from llmscale.evaluate.tasks.templates import Template, Text, Texts


class ChoiceTask(GoldSettings, TaskSettings):
    """A task of kind choice."""

    DEFAULT_METRICS: ClassVar = ("accuracy",)

    kind: Literal["choice"]
    context: Texts = ""
    """What stands before the answers; a list, or an expression that is one, has one for each answer."""
    answers: Texts = Field(min_length=1)
    """The answers: a text each, or an expression that is a list."""
    answer_prefix: str = " "
    """What every answer begins with."""
    neutral: Text | None = None
    """A context without the question, such as `"Answer:"`: what the answers' probabilities are compared with (PMI)."""
    equal_answers: Literal["refuse", "allow"] = "refuse"
    """What is done about items of which two answers are the same text, so that nothing decides between them."""
    gold: Gold
    """Which answer is right, as `gold_as` says; a list of all that are."""

    def templates(self) -> list[Template]:
        listed = [
            *listed_templates("context", self.context),
            *listed_templates("answers", self.answers),
            Template("gold", str(self.gold), True),
        ]
        return [*listed, *([] if self.neutral is None else [Template("neutral", self.neutral)])]

    def question(self, values: Mapping[str, Any]) -> Question:
        contexts = listed_values("context", self.context, values)
        bare = listed_values("answers", self.answers, values)
        if not bare:
            raise Mistake("the list of answers is empty; leave the record out, or correct answers")
        if len(contexts) not in (1, len(bare)):
            raise Mistake(
                f"there are {len(contexts)} contexts for {len(bare)} answers; give one, or one for each answer"
            )
        equal = equal_answers(bare, contexts)
        if equal and self.equal_answers == "refuse":
            raise equal_mistake(bare, equal)
        if len(set(contexts)) == 1:
            contexts = contexts[:1]
        gold = places_of(values["gold"], bare, self)
        gold += tuple(other for pair in equal if set(pair) & set(gold) for other in pair if other not in gold)
        answers = tuple(self.answer_prefix + answer for answer in bare)
        return Question(
            contexts=tuple(contexts),
            answers=answers,
            neutral=None if self.neutral is None else text_of(values, "neutral"),
            gold=gold,
            shown=(contexts[gold[0]] if len(contexts) > 1 else contexts[0]) + answers[gold[0]],
            note="have two equal answers" if equal else None,
        )


def listed_templates(name: str, sources: str | list[str]) -> list[Template]:
    """The templates of a setting that is one expression or a list of texts."""
    if isinstance(sources, str):
        return [Template(name, sources, True)]
    return [Template(f"{name}.{place}", source) for place, source in enumerate(sources)]


def listed_values(name: str, sources: str | list[str], values: Mapping[str, Any]) -> list[str]:
    """Their texts.

    Raises:
        Mistake: there is one that is no text.
    """
    if isinstance(sources, str):
        return texts_of(values, name)
    return [text_of(values, f"{name}.{place}") for place in range(len(sources))]


def equal_answers(answers: Sequence[str], contexts: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Places of answers that are the same text after the same context, between which no probability decides."""
    first: dict[tuple[str, str], int] = {}
    pairs = []
    for place, answer in enumerate(answers):
        other = first.setdefault((contexts[place] if len(contexts) > 1 else "", answer), place)
        if other != place:
            pairs.append((other, place))
    return pairs


def equal_mistake(answers: Sequence[str], equal: Sequence[tuple[int, int]]) -> Mistake:
    """What is said of them."""
    place, other = equal[0]
    return Mistake(
        f"answers {place} and {other} are both {answers[place]!r}; make them different, or leave the record out"
    )
