"""The model writes its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from llmscale.evaluate.tasks.kinds.choice import listed_templates, listed_values
from llmscale.evaluate.tasks.settings import Mistake, Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Template, Text, Texts

AsTrained = Literal["as-trained"]


class GenerateTask(TaskSettings):
    """A task of kind generate."""

    DEFAULT_METRICS: ClassVar = ("exact_match",)
    WRITTEN: ClassVar = True

    kind: Literal["generate"]
    context: Text
    """What the model goes on from."""
    references: Texts = Field(min_length=1)
    """The right texts: a text each, or an expression that is a list."""
    answer_prefix: str = " "
    """What stands between a context and its answer in examples."""
    example: Text | None = None
    """What examples have as their answer; the first reference where not given."""
    until: list[str] = ["\n\n"]
    """Texts that end the answer; they are no part of it."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens after which it ends at the latest."""
    samples: int = Field(default=1, ge=1, le=1000)
    """How many answers are drawn for each item, for pass@k."""
    temperature: float = Field(default=0.0, ge=0)
    """Of sampling; 0 is greedy."""
    overflow: Literal["refuse", "window", "truncate-left"] | AsTrained = "truncate-left"  # type: ignore[assignment]
    """As of any task; there is nothing to window. as-trained: a source loses its end from data.sequence_length on, as
    in training by the objective seq2seq; a context of objective chat is a dialogue that its template has made."""

    @field_validator("until")
    @classmethod
    def _texts_that_end(cls, until: list[str]) -> list[str]:
        if "" in until:
            raise ValueError("it has an empty text, which would end every answer at once; leave it out")
        return until

    @model_validator(mode="after")
    def _settings_that_fit(self) -> GenerateTask:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples}, but temperature is 0, so that all would be the same; raise temperature"
            )
        if self.overflow == "window":
            raise ValueError(
                "overflow is window, but an answer is written after one context; use truncate-left or refuse"
            )
        return self

    def templates(self) -> list[Template]:
        example = [] if self.example is None else [Template("example", self.example)]
        return [Template("context", self.context), *listed_templates("references", self.references), *example]

    def question(self, values: Mapping[str, Any]) -> Question:
        context = text_of(values, "context")
        references = listed_values("references", self.references, values)
        if not references:
            raise Mistake("the list of references is empty; leave the record out, or correct references")
        answer = references[0] if self.example is None else text_of(values, "example")
        return Question(contexts=(context,), references=tuple(references), shown=context + self.answer_prefix + answer)
