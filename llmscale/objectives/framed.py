"""The model's side of objectives that predict at the tokens of texts between special tokens."""

from __future__ import annotations

from typing import TypeVar

from data_pipeline.objectives.framed import AROUND, FramedSettings
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
        return Shape(sequence_length, sequence_length if self.config.special_tokens == "decoder" else 0, masked=True)

    def instead(self, architecture: str) -> str | None:
        return "set model.architecture=encoder and objective.special_tokens=eos, for its encoder alone"

    def mismatch(self, model: ModelConfig) -> str | None:
        given, architecture = self.config.special_tokens, model.architecture
        if (architecture == "encoder_decoder") != (given == "decoder"):
            return (
                f"objective.special_tokens is {given}, but model.architecture is {architecture}; set"
                f" objective.special_tokens={AROUND[architecture]}"
            )
        if architecture != "decoder" or given == "eos":
            return None
        return (
            "objective.special_tokens is cls, but model.architecture is decoder, which has no token in front that sees"
            " the others; set objective.special_tokens=eos"
        )
