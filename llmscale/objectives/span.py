"""Spans that answer questions, in windows of passages."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from data_pipeline.objectives.framed import AROUND
from data_pipeline.objectives.span import NAME, SpanObjective
from llmscale.config import ModelConfig
from llmscale.objectives.framed import FramedSide


class Span(FramedSide[SpanObjective]):
    """Predicts one span of each question with a window."""

    settings = SpanObjective

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder", "decoder", "encoder_decoder")

    @classmethod
    def made_for(cls, model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any] | None:
        if model.head is None or model.head.name != NAME:
            return None
        own = {"dropout": model.head.dropout, "transform": model.head.transform}
        return {"name": NAME, "special_tokens": AROUND[model.architecture], **own}
