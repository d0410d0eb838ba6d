"""Reward models: a number for an answer to a prompt, larger for the better of two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipeline.objectives.answers import AnswersSettings, Pairs
from data_pipeline.objectives.packing import Stored
from data_pipeline.tokenizer import Tokenizer

NAME = "reward"


class RewardObjective(AnswersSettings):
    """A number for each of two answers, of which the better one's is to be larger (Bradley-Terry; Ouyang et al. 2022,
    equation 1): `fields: {chosen: NAME, rejected: NAME}`."""

    name: Literal["reward"] = "reward"
    """A number for an answer."""
    center_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of both numbers, which keeps them around 0 (Eisenstein et al. 2023)."""

    @property
    def stored(self) -> Stored:
        return Stored(values=("chosen", "rejected"))

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any]:
        # What transformers' decoders have as classifiers of one label, without a bias.
        return {"name": "classification", "outputs": 1, "pooling": "last", "bias": False, "loss": "squared_error"}

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Pairs:
        return Whole(self, tokenizer, sequence_length)


class Whole(Pairs):
    """Pairs of answers that are read to their end token."""

    ahead = 0
