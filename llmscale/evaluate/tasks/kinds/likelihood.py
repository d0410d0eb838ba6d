"""The model gives one continuation its probability, and whether it would have been its own: LAMBADA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from llmscale.evaluate.tasks.settings import Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Template, Text


class LikelihoodTask(TaskSettings):
    """A task of kind likelihood."""

    DEFAULT_METRICS: ClassVar = ("greedy_accuracy", "target_perplexity")

    kind: Literal["likelihood"]
    context: Text = ""
    """What stands before the answer."""
    answer: Text
    """The continuation."""
    answer_prefix: str = " "
    """What it begins with."""
    neutral: Text | None = None
    """A context without the question, for PMI."""

    def templates(self) -> list[Template]:
        named = {"context": self.context, "answer": self.answer, "neutral": self.neutral}
        return [Template(name, source) for name, source in named.items() if source is not None]

    def question(self, values: Mapping[str, Any]) -> Question:
        context, answer = text_of(values, "context"), self.answer_prefix + text_of(values, "answer")
        neutral = None if self.neutral is None else text_of(values, "neutral")
        return Question(contexts=(context,), answers=(answer,), neutral=neutral, gold=(0,), shown=context + answer)
