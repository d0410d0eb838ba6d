"""The model gives whole texts their probability."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_pipeline.reading.item import Item
from llmscale.evaluate.tasks.settings import Mistake, Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Template, Text


class PerplexityTask(TaskSettings):
    """A task of kind perplexity. Its `group` is the text's domain."""

    DEFAULT_METRICS: ClassVar = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    SHOWS_EXAMPLES: ClassVar = False

    kind: Literal["perplexity"]
    text: Text
    """The text that is scored."""
    source_text: Text | None = None
    """The text as it was before any processing, whose words and bytes the figures are divided by; `text` where not
    given."""
    window: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; its whole context where not given."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens that each window is further than the one before: those that it scores. The window's size where not given,
    so that no token is seen twice."""
    documents: Literal["separate", "joined"] = "separate"
    """separate: each text begins a document of its own. joined: the texts of a group follow each other, and windows go
    on from one to the next."""
    separator: str | None = None
    """Text between joined ones. As they follow each other in training where not given: with the end of a document
    behind each."""
    overflow: Literal["refuse", "window", "truncate-left"] = "window"
    """As of any task."""

    @model_validator(mode="after")
    def _stride_within_window(self) -> PerplexityTask:
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride is {self.stride}, but window is {self.window}, so that tokens between windows would not be"
                f" scored; make it {self.window} or less"
            )
        return self

    @model_validator(mode="after")
    def _what_joins(self) -> PerplexityTask:
        if self.documents == "separate" and self.separator is not None:
            raise ValueError(f"separator is {self.separator!r}, but documents is separate; make it joined")
        if self.documents == "joined" and self.preamble:
            raise ValueError("documents is joined, but preamble would stand before each text; leave it out")
        return self

    def together(self, items: list[Item]) -> list[Item]:
        """Joined texts know what they are joined with, which their scores depend on."""
        if self.documents == "separate":
            return items
        streams: dict[str | None, Any] = {}
        for item in items:
            state = streams.setdefault(item.group, hashlib.sha256())
            state.update(item.digest.encode())
        return [replace(item, stream=streams[item.group].hexdigest()[:16]) for item in items]

    def templates(self) -> list[Template]:
        source = [] if self.source_text is None else [Template("source_text", self.source_text)]
        return [Template("text", self.text), *source]

    def question(self, values: Mapping[str, Any]) -> Question:
        text = text_of(values, "text")
        if not text.strip():
            raise Mistake("text is empty; leave the record out")
        source = text if self.source_text is None else text_of(values, "source_text")
        # As lm-eval counts words.
        words = len(re.split(r"\s+", source))
        return Question(answers=(text,), scored_bytes=len(source.encode()), scored_words=words)
