"""A fine-tuned head finds the answer to a question in a passage: SQuAD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmscale.evaluate.tasks.kinds.choice import listed_templates, listed_values
from llmscale.evaluate.tasks.settings import Mistake, Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Template, Text, Texts


class SpanTask(TaskSettings):
    """A task of kind span. An item's contexts are its question and its passage."""

    DEFAULT_METRICS: ClassVar = ("exact_match", "f1")
    SHOWS_EXAMPLES: ClassVar = False

    kind: Literal["span"]
    question_text: Text
    """What is asked."""
    passage: Text
    """The text with the answer."""
    references: Texts = Field(min_length=1)
    """The right spans: a text each, or an expression that is a list. Each stands in the passage."""
    unanswerable: bool = False
    """Questions without a right span are allowed: an empty list, as in SQuAD 2."""
    max_answer_length: int = Field(default=30, ge=1)
    """Most tokens of an answer."""
    null_threshold: float = 0.0
    """With `unanswerable`, by how much the score of no answer must be above that of the best span to count."""
    overflow: Literal["refuse", "window", "truncate-left"] = "window"
    """As of any task."""

    def templates(self) -> list[Template]:
        named = [Template("question_text", self.question_text), Template("passage", self.passage)]
        return [*named, *listed_templates("references", self.references)]

    def question(self, values: Mapping[str, Any]) -> Question:
        passage, references = text_of(values, "passage"), listed_values("references", self.references, values)
        if not references and not self.unanswerable:
            raise Mistake(
                "the list of references is empty, but unanswerable is not set; set it, or leave the record out"
            )
        for reference in references:
            if reference not in passage:
                raise Mistake(f"reference {reference!r} does not stand in the passage; correct the data")
        # SQuAD 2 compares what is found with an empty text.
        right = tuple(references) or ("",)
        return Question(contexts=(text_of(values, "question_text"), passage), references=right)
