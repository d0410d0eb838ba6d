"""Spans that were cut out, of encoder-decoders (T5)."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Any

from data_pipeline.objectives.denoising import DenoisingObjective, noise, window_length
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Named, Shape


class Denoising(ModelSide[DenoisingObjective]):
    """The decoder gives what was cut out."""

    settings = DenoisingObjective

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder_decoder",)

    def lengths(self, sequence_length: int) -> Named:
        _, cut, spans = _noise(self.config, sequence_length)
        return ("data.sequence_length", sequence_length), ("the length of the decoder's targets", cut + spans + 1)

    def shape(self, sequence_length: int) -> Shape:
        window, cut, spans = _noise(self.config, sequence_length)
        # The encoder's rows are padded where no window fills them exactly.
        padded = window - cut + spans + 1 < sequence_length
        return Shape(cut + spans + 1, memory=sequence_length, masked=padded)

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        marked = roles is None or "sentinel_0" in roles
        return {"name": "denoising"} if marked and model.architecture == "encoder_decoder" and not model.head else None


@lru_cache
def _noise(config: DenoisingObjective, sequence_length: int) -> tuple[int, int, int]:
    """Tokens of a window, those that are cut out of it, and in how many spans."""
    window = window_length(config, sequence_length)
    return window, *noise(config, window)
