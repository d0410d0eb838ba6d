"""Low-rank factors beside the linear layers of a model that is not trained otherwise."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from data_pipeline.base.section import Section
from llmscale.config.bounds import Width

Pattern = Annotated[str, Field(min_length=1)]


class LoraConfig(Section):
    """LoRA (Hu et al. 2021): each targeted weight W acts as W + scale x B A, of which only A (rank, inputs) and B
    (outputs, rank) are trained."""

    rank: Width = Field(default=8, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=16.0, gt=0)
    """The scale is alpha / rank."""
    rslora: bool = False
    """The scale is alpha / sqrt(rank) instead (Kalajdzievski 2023), so that it suits large ranks as well."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inputs of A dropped in training."""
    targets: list[Pattern] = Field(default=["all"], min_length=1)
    """Which linear layers of the blocks have factors: all, attention (with cross-attention), feed_forward (with
    experts), the name of a module (query, up; of one with layers in it, such as cross_attention or encoder, all of
    these), or a pattern over canonical names (`blocks.1?.attention.query`)."""
    dora: bool = False
    """Each row of W + scale x B A is normalised and has a trained length (DoRA; Liu et al. 2024)."""

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
