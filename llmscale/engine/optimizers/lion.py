"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmscale.config.training import OptimizerConfig
from llmscale.engine.optimizers.sharded import ShardedOptimizer, zeros


class Lion(ShardedOptimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2).

    c = b1 m + (1 - b1) g;  p = p - lr (sign(c) + wd p);  m = b2 m + (1 - b2) g. All elementwise, so parts of tensors
    need to know nothing of each other.

    Args:
        groups: parameters, or dictionaries of parameters with options of their own.
        lr: learning rate; the paper takes a third to a tenth of AdamW's, and a weight decay that much larger.
        betas: b1 of the update, b2 of the momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self, groups: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def create_state(self, partition: Tensor, options: dict[str, Any]) -> None:
        self.state[partition]["exp_avg"] = zeros(partition)

    def update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        first, second = options["betas"]
        momentum = self.state[partition]["exp_avg"]
        direction = momentum.lerp(gradient, 1 - first).sign_()
        partition.mul_(1 - options["lr"] * options["weight_decay"]).add_(direction, alpha=-options["lr"])
        momentum.lerp_(gradient, 1 - second)


def make(groups: list[dict[str, Any]], settings: OptimizerConfig, arithmetic: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    return Lion(groups, lr=settings.lr, betas=settings.betas)
