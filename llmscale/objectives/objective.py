"""What an objective says of the models that it trains. Nothing here needs torch: layouts and plans ask, too."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from data_pipeline.objectives import ObjectiveSettings
from llmscale.config import ModelConfig, RunConfig
from llmscale.model.heads import Head, heads_of

Settings = TypeVar("Settings", bound=ObjectiveSettings)
Reading = Literal["document", "prefix", "source"]
"""What a decoder takes a prompt for. document: the beginning of a document, which follows the end-of-document token, or
what an imported model has there; prefix: the same, its tokens all seeing each other; source: a text whose end is
followed by another. An encoder-decoder always reads a source, with its encoder."""
Named = tuple[tuple[str, int], ...]
"""(what a user calls a number, the number)."""


class Shape(NamedTuple):
    """One sample, as the model reads it."""

    length: int
    """Tokens of the decoder, or of the encoder where it is alone."""
    memory: int = 0
    """Tokens of the encoder of an encoder-decoder; 0: there is none."""
    targets: float = 1.0
    """Share of the `length` tokens that the head sees."""
    masked: bool = False
    """Whether attention takes a mask: documents kept apart, a prefix, or samples of unequal length."""


class ModelSide(Generic[Settings]):
    """The model's side of an objective; its data side is in `data_pipeline.objectives`."""

    settings: ClassVar[type[ObjectiveSettings]]
    """Of which objective."""
    reading: Reading = "document"
    """How a decoder that it has trained reads a prompt."""
    sparse: bool = False
    """Whether most positions of a sample are no targets."""

    def __init__(self, config: Settings) -> None:
        self.config = config

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that it trains."""
        return ("decoder",)

    @property
    def form(self) -> str:
        """Its name in messages, with the setting that decides the architecture."""
        return self.config.name

    @property
    def least_batch(self) -> int:
        """Fewest samples of a global batch."""
        return 1

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        """The heads that it trains: all that a model has must be among them, and the other way around."""
        return ("language",)

    def heads(self, model: ModelConfig) -> tuple[Head, ...]:
        """The heads whose losses are minimised, with the objective's own loss where it has one; needs torch."""
        return heads_of(model)

    def whole_sequences(self, model: ModelConfig) -> tuple[str, ...]:
        """Heads whose loss looks at several positions of a sequence at once."""
        return tuple(head.name for head in heads_of(model) if head.reads == "whole")

    def reference(self, config: RunConfig) -> tuple[str, str] | None:
        """The setting that names the model whose log-probabilities of each sample's answers the loss needs, and the
        model's path; None: it needs none."""
        return None

    def lengths(self, sequence_length: int) -> Named:
        """Tokens of a sample, as the model reads it; first what positions must reach for."""
        return (("data.sequence_length", sequence_length),)

    def shape(self, sequence_length: int) -> Shape:
        """A sample, for plans."""
        return Shape(sequence_length)

    def instead(self, architecture: str) -> str | None:
        """The setting by which it would train this architecture; None: none does."""
        return None

    def mismatch(self, model: ModelConfig) -> str | None:
        """Why it cannot train a model of the right architecture, with the fix; None: it can."""
        return None

    def impossible(self, config: RunConfig) -> str | None:
        """Why the rest of a config does not go with it, with the fix; None: it does."""
        return None

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        """The settings by which to go on training a model that comes without any, where this is the objective for it.

        Args:
            roles: of the tokens that there are; None: any.
        """
        return None
