"""The loss of reward models: the better of two answers is to get the larger number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batch import Batch
from data_pipeline.objectives.reward import NAME, RewardObjective
from llmscale.config import ModelConfig
from llmscale.model.heads.classification import ClassificationHead


class RewardLoss(ClassificationHead):
    """A classifier of one output over the last token of each of two answers, by Bradley and Terry's model."""

    features = None
    higher_is_better = frozenset({"accuracy", "margin"})

    def __init__(self, config: ModelConfig, objective: RewardObjective) -> None:
        super().__init__(config)
        self.objective = objective
        self.measures = ("accuracy", "margin")

    def rewards(self, module: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, 2) of at least fp32: the numbers of both answers."""
        size = hidden.shape[1] // 2
        places = torch.arange(2 * size, device=hidden.device).reshape(2, size)
        answers = (batch.labels[NAME] > 0).reshape(-1, 2, size)
        last = torch.where(answers, places, 0).amax(2)
        rewards = module(hidden[torch.arange(len(hidden), device=hidden.device)[:, None], last])[..., 0]
        return rewards.to(torch.promote_types(hidden.dtype, torch.float32))

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        rewards = self.rewards(module, hidden, batch)
        losses = -F.logsigmoid(rewards[:, 0] - rewards[:, 1])
        losses = losses + self.objective.center_weight * rewards.sum(1).square()
        return (losses * self._known(batch)).sum()

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        rewards, known = self.rewards(module, hidden, batch), self._known(batch)
        margin = rewards[:, 0] - rewards[:, 1]
        return [((margin > 0) & known).sum().to(margin.dtype), (margin * known).sum()]

    def _known(self, batch: Batch) -> Tensor:
        return (batch.labels[NAME] > 0).any(1)
