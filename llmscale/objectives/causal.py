"""The next token, of decoders."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.causal import CausalObjective
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Shape


class Causal(ModelSide[CausalObjective]):
    """What every decoder is trained by at first."""

    settings = CausalObjective

    def shape(self, sequence_length: int) -> Shape:
        return Shape(sequence_length, masked=self.config.separate_documents)

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        return {"name": "causal"} if model.architecture == "decoder" and model.head is None else None
