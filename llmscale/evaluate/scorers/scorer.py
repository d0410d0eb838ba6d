"""What every scorer does: an item becomes rows whose scores are the probabilities of its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import Reader
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Request

Overflow = Literal["refuse", "truncate-left", "window"]
WINDOWED = "windowed"
"""Flag of an item that is longer than the model's context."""


@dataclass(frozen=True)
class Length:
    """What becomes of an item that is longer than the model's context."""

    overflow: Overflow = "refuse"
    """refuse: the evaluation does not begin; truncate-left: the beginning of the context is left out, but for what
    stands in front of every text; window: the answer is read in windows."""
    window: int | None = None
    """Tokens of a window; None: the model's context."""
    stride: int | None = None
    """How many tokens of each further window are scored, after those of the window before; None: as many as fit after
    one token of context."""


class Scorer(ABC):
    """How one kind of model says how probable a text is."""

    name: ClassVar[str]
    windows: ClassVar[bool] = False
    """Whether it scores what is longer than the context window by window."""

    def __init__(self, reader: Reader, model: ModelConfig, length: Length = Length()) -> None:
        """
        Args:
            reader: of the model.
            length: what becomes of items that are too long.
        """
        self.reader = reader
        self.model = model
        self.length = length

    @staticmethod
    @abstractmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        """How well it suits a model that was trained by an objective: 0: not at all; the largest is the default."""

    @abstractmethod
    def request(self, item: Item) -> Request:
        """What is asked about an item.

        Raises:
            UserError: an answer becomes no token, or the item is longer than the context and `length` refuses that.
        """

    def too_long(self, tokens: int, *, answer: bool = False) -> UserError:
        """The refusal of an item of so many tokens, or of an `answer` that does not fit even without its context."""
        what = "its answer alone" if answer else "it"
        if not answer:
            fix = "give --overflow truncate-left or window (or set the task's overflow), or leave the item out"
        elif self.windows and self.length.overflow != "window":
            fix = "give --overflow window (or set the task's overflow), or leave the item out"
        else:
            fix = "leave the item out, or take a model with a longer context"
        return UserError(f"{what} has {tokens} tokens, but the model's context is {self.model.max_positions}; {fix}")
