"""Prefix language modelling: windows of the packed stream, whose beginnings are read in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data_pipeline.base.random import uniforms
from data_pipeline.objectives.objective import Arrays, ObjectiveSettings
from data_pipeline.objectives.packing import Sample
from data_pipeline.objectives.windows import Windows
from data_pipeline.tokenizer import Tokenizer


class PrefixObjective(ObjectiveSettings):
    """The rest of a sample after a prefix whose tokens all see each other (prefix LM; Raffel et al. 2020, 3.2.1)."""

    name: Literal["prefix"] = "prefix"
    """The rest after a prefix."""
    least_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The prefix is uniformly long between this fraction of the sample and one minus it."""

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Prefix:
        return Prefix(self, tokenizer, sequence_length, seed)


class Prefix(Windows):
    """A prefix that is read in both directions, and the rest predicted from it."""

    config: PrefixObjective

    def __init__(self, config: PrefixObjective, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        super().__init__(tokenizer, sequence_length)
        self.config = config
        self.seed = seed

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        arrays = self.rows([sample.tokens for sample in samples])
        shares = np.array([uniforms(1, "prefix", self.seed, k)[0] for k in numbers])
        shares = self.config.least_share + shares * (1 - 2 * self.config.least_share)
        sizes = np.array([len(sample.tokens) - 1 for sample in samples])
        prefix = np.maximum(1, (shares * sizes).astype(np.int64))
        # The last token of the prefix predicts the first one after it.
        predicted = np.arange(self.length - 1) >= prefix[:, None] - 1
        weights = arrays.get("weights", np.ones(predicted.shape, dtype=np.float32))
        return {**arrays, "weights": weights * predicted, "prefix_lengths": prefix}
