"""Muon: orthogonalised momentum for hidden matrices, AdamW for everything else."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmscale.config.training import OptimizerConfig
from llmscale.engine.optimizers.sharded import ShardedOptimizer, step_count, zeros

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan 2024, "Muon", section "The Newton-Schulz iteration")."""
EPSILON = 1e-7
"""Least norm that a matrix is divided by before the iteration."""

Adjustment = Literal["original", "match_rms_adamw"]


class Muon(ShardedOptimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon), as torch.optim.Muon has it, with its AdamW.

    In groups with `orthogonal`: m = mu m + (1 - mu) g;  u = (1 - mu) g + mu m, or m without Nesterov;
    p = p (1 - lr wd) - a lr NewtonSchulz(u). In the other groups AdamW.

    A matrix that ZeRO has cut is brought together on one of its ranks, iterated there, and sent back. Tensors of more
    than two dims are stacks of matrices, each orthogonalised by itself.

    Args:
        groups: dictionaries of parameters with `orthogonal` true or false, and options of their own.
        lr: learning rate of both kinds of groups, unless they have their own.
        momentum: mu.
        nesterov: look ahead, as above.
        newton_schulz_steps: iterations.
        lr_adjustment: a of a (rows, columns) matrix. original: sqrt(max(1, rows / columns)); match_rms_adamw:
            0.2 sqrt(max(rows, columns)), with which AdamW's learning rate and weight decay fit (Liu et al. 2025, "Muon
            is Scalable for LLM Training", section 2.2).
        arithmetic: of the iteration.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        groups: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        newton_schulz_steps: int = 5,
        lr_adjustment: Adjustment = "original",
        arithmetic: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "newton_schulz_steps": newton_schulz_steps,
            "lr_adjustment": lr_adjustment,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "orthogonal": False,
        }
        super().__init__(groups, defaults)
        self._arithmetic = arithmetic

    def create_state(self, partition: Tensor, options: dict[str, Any]) -> None:
        state = self.state[partition]
        if options["orthogonal"]:
            state["momentum_buffer"] = zeros(partition)
        else:
            state["step"] = step_count(partition)
            state["exp_avg"] = zeros(partition)
            state["exp_avg_sq"] = zeros(partition)

    def update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        if options["orthogonal"]:
            self._orthogonal_update(partition, gradient, options)
        else:
            self._adamw_update(partition, gradient, options)

    def _orthogonal_update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        momentum = self.state[partition]["momentum_buffer"]
        momentum.lerp_(gradient, 1 - options["momentum"])
        updates = gradient.lerp_(momentum, options["momentum"]) if options["nesterov"] else gradient.copy_(momentum)
        directions = updates.view(-1).to(self._arithmetic)
        self._map_whole(
            partition,
            directions,
            lambda part, whole: orthogonalize(whole.view(part.stack), options["newton_schulz_steps"]).reshape(-1),
        )
        partition.mul_(1 - options["lr"] * options["weight_decay"])
        for part in self.parts(partition):
            rate = options["lr"] * adjustment(options["lr_adjustment"], *part.held.shape[-2:])
            part.of(partition).sub_(part.of(directions), alpha=rate)

    def _adamw_update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        state = self.state[partition]
        first, second = options["betas"]
        adamw(
            [partition],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            maximize=False,
        )


def adjustment(name: Adjustment, rows: int, columns: int) -> float:
    """What the learning rate of a (rows, columns) matrix is multiplied by."""
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """About U V^T of each matrix U S V^T, its singular values brought near to 1 by a quintic Newton-Schulz iteration.

    Args:
        matrices: (matrices, rows, columns), in the arithmetic to compute with.
        steps: iterations; five bring singular values to within about 0.7 to 1.2.

    Returns:
        A tensor of the same shape and arithmetic.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.mT if tall else matrices
    # The Frobenius norm bounds the spectral norm, which must not exceed 1.
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


def make(groups: list[dict[str, Any]], settings: OptimizerConfig, arithmetic: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    return Muon(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        newton_schulz_steps=settings.newton_schulz_steps,
        lr_adjustment=settings.lr_adjustment,
        arithmetic=arithmetic,
        betas=settings.betas,
        eps=settings.eps,
    )
