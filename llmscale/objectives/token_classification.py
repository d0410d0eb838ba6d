"""Labels of words or characters, at the first token of each or at all of them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.framed import AROUND
from data_pipeline.objectives.token_classification import NAME, TokenClassificationObjective
from llmscale.config import ModelConfig
from llmscale.objectives.framed import FramedSide


class TokenClassification(FramedSide[TokenClassificationObjective]):
    """Predicts at each token."""

    settings = TokenClassificationObjective

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        if model.head is None or model.head.name != NAME:
            return None
        labels = [f"LABEL_{output}" for output in range(model.head.outputs)]
        own = {"labels": labels, "scheme": "none", "dropout": model.head.dropout, "transform": model.head.transform}
        return {"name": NAME, "special_tokens": AROUND[model.architecture], **own}
