"""Vectors of texts: encoders and decoders, with the head of that name in place of the language model's."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.contrastive import NAME, ContrastiveObjective
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Shape


class Contrastive(ModelSide[ContrastiveObjective]):
    """Reads several texts of each sample, and compares them with those of all others of the global batch."""

    settings = ContrastiveObjective

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder", "decoder")

    @property
    def least_batch(self) -> int:
        return 1 if self.config.negatives else 2

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        return (NAME,)

    def shape(self, sequence_length: int) -> Shape:
        # As one text as long as all of them, which is too much for their attention.
        length = (2 + self.config.negatives) * sequence_length
        return Shape(length, targets=1 / length, masked=True)

    def instead(self, architecture: str) -> str:
        return "set model.architecture=encoder, for its encoder alone"

    def mismatch(self, model: ModelConfig) -> str | None:
        if model.architecture == "decoder" and self.config.pooling == "first":
            return (
                "objective.pooling is first, but model.architecture is decoder, whose first token sees no other; set"
                " objective.pooling=last or mean"
            )
        if self.config.positives == "dropout" and not (model.dropout or model.attention_dropout):
            return (
                "objective.positives is dropout, but model.dropout and model.attention_dropout are 0, so that a text"
                " and its positive would be the same vector; set model.dropout=0.1, or objective.positives=target"
            )
        return None

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        head = model.head
        if head is None or head.name != NAME:
            return None
        shared = ("pooling", "normalize", "temperature", "symmetric")
        return {"name": NAME, **{key: getattr(head, key) for key in shared}}
