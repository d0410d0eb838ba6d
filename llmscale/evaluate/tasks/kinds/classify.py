"""A fine-tuned head gives a text, or two, one of its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from llmscale.evaluate.tasks.gold import Gold, GoldSettings, places_of
from llmscale.evaluate.tasks.settings import Question, TaskSettings, require_once, text_of
from llmscale.evaluate.tasks.templates import Template, Text


class ClassifyTask(GoldSettings, TaskSettings):
    """A task of kind classify. An item's contexts are its texts, and its gold is a place among the labels."""

    DEFAULT_METRICS: ClassVar = ("accuracy",)
    SHOWS_EXAMPLES: ClassVar = False

    kind: Literal["classify"]
    text: Text
    """What is classified."""
    second_text: Text | None = None
    """The other text of a pair."""
    labels: list[str] = Field(min_length=2)
    """The labels, in the order of the head's outputs."""
    gold: Gold
    """The right label, as `gold_as` says."""
    overflow: Literal["refuse", "truncate-left"] = "truncate-left"
    """As of any task."""

    @field_validator("labels")
    @classmethod
    def _labels_once(cls, labels: list[str]) -> list[str]:
        return require_once(labels)

    def templates(self) -> list[Template]:
        second = [] if self.second_text is None else [Template("second_text", self.second_text)]
        return [Template("text", self.text), *second, Template("gold", str(self.gold), True)]

    def question(self, values: Mapping[str, Any]) -> Question:
        texts = [text_of(values, template.name) for template in self.templates()[:-1]]
        return Question(contexts=tuple(texts), gold=places_of(values["gold"], self.labels, self))
