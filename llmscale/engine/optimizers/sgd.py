"""Stochastic gradient descent, as torch has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmscale.config.training import OptimizerConfig
from llmscale.engine.compiling import without_compiler
from llmscale.engine.optimizers.sharded import zeros

_SGD = without_compiler(torch.optim.SGD)


def make(groups: list[dict[str, Any]], settings: OptimizerConfig, arithmetic: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    return _SGD(groups, lr=settings.lr, momentum=settings.momentum)


def create_state(state: dict[str, Any], partition: Tensor, options: dict[str, Any]) -> None:
    """A zero buffer, from which the first update computes what it would have computed without."""
    if options["momentum"]:
        state["momentum_buffer"] = zeros(partition)
