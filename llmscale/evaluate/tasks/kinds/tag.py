"""A fine-tuned head labels each word of a text: names, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from llmscale.evaluate.tasks.settings import Mistake, Question, TaskSettings, require_once
from llmscale.evaluate.tasks.templates import Template


class TagTask(TaskSettings):
    """A task of kind tag. An item's context is its text, its answers are the words of that, and its references their
    right tags."""

    DEFAULT_METRICS: ClassVar = ("entity_f1", "tag_accuracy")
    SHOWS_EXAMPLES: ClassVar = False

    kind: Literal["tag"]
    words: str = Field(min_length=1)
    """An expression that is the list of words: `"{{ tokens }}"`."""
    tags: str = Field(min_length=1)
    """An expression that is the list of their tags, by name or by place among the labels: `"{{ ner_tags }}"`."""
    labels: list[str] = Field(min_length=2)
    """All tags: those of the head, in any order, or in that of the numbers in the data."""
    join: str = " "
    """What stands between the words of the text; nothing in Chinese."""
    overflow: Literal["window"] = "window"
    """As of any task: long texts are labelled in parts."""

    @field_validator("labels")
    @classmethod
    def _labels_once(cls, labels: list[str]) -> list[str]:
        return require_once(labels)

    def templates(self) -> list[Template]:
        return [Template("words", self.words, True), Template("tags", self.tags, True)]

    def question(self, values: Mapping[str, Any]) -> Question:
        words, tags = values["words"], values["tags"]
        for name, value in (("words", words), ("tags", tags)):
            if not isinstance(value, list):
                raise Mistake(f"{name} is {value!r:.60}, but must be a list; correct the expression")
        if len(words) != len(tags):
            raise Mistake(f"there are {len(words)} words and {len(tags)} tags; give each word one tag")
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise Mistake(f"words is {words!r:.60}, but must be texts, none of them empty; correct the data")
        return Question(
            contexts=(self.join.join(words),),
            answers=tuple(words),
            references=tuple(self._named(tag) for tag in tags),
        )

    def _named(self, tag: Any) -> str:
        if type(tag) is int and 0 <= tag < len(self.labels):
            return self.labels[tag]
        if tag not in self.labels:
            raise Mistake(f"a tag is {tag!r:.60}, but the labels are {', '.join(self.labels)}; correct one of them")
        return str(tag)
