"""Reward models: decoders with a classifier of one output, whose answers are compared by pairs."""

from __future__ import annotations

from data_pipeline.objectives.reward import NAME, RewardObjective
from llmscale.config import ModelConfig
from llmscale.model.heads import Head
from llmscale.objectives.objective import ModelSide, Shape


class Reward(ModelSide[RewardObjective]):
    """Sees two answers side by side, and counts a pair as one target."""

    settings = RewardObjective

    def predicts(self, model: ModelConfig) -> tuple[str, ...]:
        return ("classification",)

    def heads(self, model: ModelConfig) -> tuple[Head, ...]:
        from llmscale.objectives.reward_loss import RewardLoss

        return (RewardLoss(model, self.config),)

    def whole_sequences(self, model: ModelConfig) -> tuple[str, ...]:
        return (NAME,)

    def shape(self, sequence_length: int) -> Shape:
        return Shape(2 * sequence_length, targets=1 / sequence_length, masked=True)
