"""AdamW, as torch has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmscale.config.training import OptimizerConfig
from llmscale.engine.compiling import without_compiler
from llmscale.engine.optimizers.sharded import step_count, zeros

_AdamW = without_compiler(torch.optim.AdamW)


def make(groups: list[dict[str, Any]], settings: OptimizerConfig, arithmetic: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    return _AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def create_state(state: dict[str, Any], partition: Tensor, options: dict[str, Any]) -> None:
    """Zero moments and step 0, from which the first update starts."""
    state["step"] = step_count(partition)
    state["exp_avg"], state["exp_avg_sq"] = zeros(partition), zeros(partition)
