"""Labels of texts: encoders and decoders, with the head of that name in place of the language model's."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.classification import NAME, ClassificationObjective, pooling_of
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Shape

_PROBLEMS = {"cross_entropy": "single_label", "binary_cross_entropy": "multi_label", "squared_error": "regression"}


class Classification(ModelSide[ClassificationObjective]):
    """Sees whole texts, and predicts once for each."""

    settings = ClassificationObjective

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder", "decoder", "encoder_decoder")

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        return (NAME,)

    def shape(self, sequence_length: int) -> Shape:
        memory = sequence_length if self.config.pooling == "decoder" else 0
        return Shape(sequence_length, memory, targets=1 / sequence_length, masked=True)

    def mismatch(self, model: ModelConfig) -> str | None:
        pooling, architecture = self.config.pooling, model.architecture
        if (architecture == "encoder_decoder") != (pooling == "decoder"):
            fitting = {"encoder_decoder": "decoder", "decoder": "last"}.get(architecture, "first")
            return (
                f"objective.pooling is {pooling}, but model.architecture is {architecture}; set"
                f" objective.pooling={fitting}"
            )
        if architecture == "decoder" and pooling == "first":
            return (
                "objective.pooling is first, but model.architecture is decoder, whose first token sees no other; set"
                " objective.pooling=last"
            )
        return None

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        head = model.head
        if head is None or head.name != NAME:
            return None
        return {
            "name": NAME,
            "labels": [f"LABEL_{output}" for output in range(head.outputs)],
            "problem": _PROBLEMS[head.loss],
            "pooling": pooling_of(head.pooling, model.architecture),
            "pooler": head.pooler,
            "transform": head.transform,
            "dropout": head.dropout,
        }
