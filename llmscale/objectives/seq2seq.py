"""A target text from a source text: encoder-decoders, and decoders that read one after the other."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Named, Shape


class Seq2Seq(ModelSide[Seq2SeqObjective]):
    """Prompts are sources."""

    settings = Seq2SeqObjective
    reading = "source"

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("decoder",) if self.config.concatenate else ("encoder_decoder",)

    @property
    def form(self) -> str:
        return "seq2seq with concatenate" if self.config.concatenate else "seq2seq"

    def lengths(self, sequence_length: int) -> Named:
        target = self.config.target_length
        if self.config.concatenate:
            return (("data.sequence_length + objective.target_length", sequence_length + target - self.config.pack),)
        return ("data.sequence_length", sequence_length), ("objective.target_length", target)

    def shape(self, sequence_length: int) -> Shape:
        if self.config.concatenate:
            return Shape(sequence_length + self.config.target_length - self.config.pack, masked=True)
        return Shape(self.config.target_length, memory=sequence_length, masked=True)

    def instead(self, architecture: str) -> str | None:
        if architecture == "encoder":
            return None
        return f"set objective.concatenate={str(architecture == 'decoder').lower()}"

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        if model.architecture != "encoder_decoder" or model.head is not None:
            return None
        return {"name": "seq2seq", "target_length": min(Seq2SeqObjective().target_length, model.max_positions)}
