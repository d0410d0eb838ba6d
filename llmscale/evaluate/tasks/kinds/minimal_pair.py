"""Two sentences that differ in one thing, of which the model should find the good one more probable: BLiMP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from llmscale.evaluate.tasks.kinds.choice import equal_answers, equal_mistake
from llmscale.evaluate.tasks.settings import Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Template, Text


class MinimalPairTask(TaskSettings):
    """A task of kind minimal_pair."""

    DEFAULT_METRICS: ClassVar = ("pair_accuracy",)
    SHOWS_EXAMPLES: ClassVar = False

    kind: Literal["minimal_pair"]
    good: Text
    """The sentence that is right."""
    bad: Text
    """The one that is wrong."""
    context: Text = ""
    """What stands before both."""
    answer_prefix: str = ""
    """What both begin with."""

    def templates(self) -> list[Template]:
        return [Template("good", self.good), Template("bad", self.bad), Template("context", self.context)]

    def question(self, values: Mapping[str, Any]) -> Question:
        pair = [text_of(values, "good"), text_of(values, "bad")]
        if equal := equal_answers(pair):
            raise equal_mistake(pair, equal)
        answers = tuple(self.answer_prefix + sentence for sentence in pair)
        return Question(contexts=(text_of(values, "context"),), answers=answers, gold=(0,))
