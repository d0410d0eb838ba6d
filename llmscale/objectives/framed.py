"""The model's side of objectives that predict at the tokens of texts between special tokens."""

from __future__ import annotations

from typing import TypeVar

from data_pipeline.objectives.framed import FramedSettings
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Shape

Settings = TypeVar("Settings", bound=FramedSettings)


class FramedSide(ModelSide[Settings]):
    """Encoders and decoders, with the head of the objective's name in place of the language model's."""

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder", "decoder")

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        return (self.config.name,)

    def shape(self, sequence_length: int) -> Shape:
        return Shape(sequence_length, masked=True)

    def mismatch(self, model: ModelConfig) -> str | None:
        if model.architecture == "encoder" or self.config.special_tokens == "eos":
            return None
        return (
            "objective.special_tokens is cls, but model.architecture is decoder, which has no token in front that sees"
            " the others; set objective.special_tokens=eos"
        )


def around(model: ModelConfig) -> str:
    """The `special_tokens` for a model."""
    return "eos" if model.architecture == "decoder" else "cls"
