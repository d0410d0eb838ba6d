"""Hidden tokens, and whether the second segment follows the first: encoders (BERT)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.masked import MaskedObjective
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Shape


class Masked(ModelSide[MaskedObjective]):
    """Trains the head of next sentences with the other, where there is one."""

    settings = MaskedObjective
    sparse = True

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder",)

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        return ("language", "next_sentence") if self.config.next_sentence else ("language",)

    def shape(self, sequence_length: int) -> Shape:
        return Shape(sequence_length, targets=self.config.rate, masked=self.config.next_sentence)

    def mismatch(self, model: ModelConfig) -> str | None:
        pairs = self.config.next_sentence
        if pairs == model.next_sentence:
            return None
        return (
            f"objective.next_sentence is {str(pairs).lower()}, but model.next_sentence is"
            f" {str(model.next_sentence).lower()}; set model.next_sentence={str(pairs).lower()}"
            + (" and model.token_types=2" if pairs and model.token_types < 2 else "")
        )

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        if model.architecture != "encoder" or model.head is not None:
            return None
        return {"name": "masked", **({"next_sentence": True} if model.next_sentence else {})}
