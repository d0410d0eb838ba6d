"""Optimizers that share no code with the project's: torch's, transformers', and Lion written from its paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers.optimization import Adafactor

from llmscale.config import RunConfig
from tests.engine.cases import Named

Weights = dict[str, torch.Tensor]
VARIANTS: dict[str, dict[str, Any]] = {
    "lion": {"optimizer__name": "lion", "optimizer__lr": 0.002},
    "adafactor": {"optimizer__name": "adafactor", "optimizer__lr": 0.1, "optimizer__weight_decay": 0},
    "adafactor-momentum": {"optimizer__name": "adafactor", "optimizer__lr": 0.01, "optimizer__momentum": 0.8}
    | {"optimizer__scale_parameter": "false"},
    "muon": {"optimizer__name": "muon", "optimizer__lr": 0.02, "optimizer__adamw_lr": 0.01},
    "muon-original": {"optimizer__name": "muon", "optimizer__lr": 0.02, "optimizer__lr_adjustment": "original"}
    | {"optimizer__nesterov": "false", "optimizer__newton_schulz_steps": 3},
}


class BruteForceLion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. (2023), one number at a time where it matters: update, then decay, then momentum."""

    def __init__(self, groups: Any, lr: float, beta1: float, beta2: float) -> None:
        super().__init__(groups, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                before = self.state[parameter].get("m", torch.zeros_like(parameter))
                mixed = group["beta1"] * before + (1 - group["beta1"]) * gradient
                signs = torch.where(mixed > 0, 1.0, torch.where(mixed < 0, -1.0, 0.0))
                parameter.sub_(group["lr"] * (signs + group["weight_decay"] * parameter))
                self.state[parameter]["m"] = group["beta2"] * before + (1 - group["beta2"]) * gradient


def groups(named: Named, decay: float, scale: float = 1.0) -> list[dict[str, Any]]:
    """Decay on what is no vector."""
    return [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": decay, "lr_scale": scale},
        {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0, "lr_scale": scale},
    ]


def reference_optimizers(named: Named, config: RunConfig) -> list[torch.optim.Optimizer]:
    """What `optimizer.name` means, by somebody else."""
    settings = config.optimizer
    if settings.name == "lion":
        return [BruteForceLion(groups(named, settings.weight_decay), settings.lr, *settings.betas)]
    if settings.name == "adafactor":
        options = {"scale_parameter": settings.scale_parameter, "relative_step": False, "warmup_init": False}
        return [
            Adafactor(groups(named, settings.weight_decay), settings.lr, beta1=settings.momentum or None, **options)
        ]
    assert settings.name == "muon"
    hidden = [(name, p) for name, p in named if name.startswith("blocks.") and p.dim() == 2]
    rest = [(name, p) for name, p in named if not (name.startswith("blocks.") and p.dim() == 2)]
    muon = torch.optim.Muon(
        [{"params": [p for _, p in hidden], "lr_scale": 1.0}],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        ns_steps=settings.newton_schulz_steps,
        weight_decay=settings.weight_decay,
        adjust_lr_fn=settings.lr_adjustment,
    )
    scale = (settings.adamw_lr or settings.lr) / settings.lr
    adamw_groups = groups(rest, settings.weight_decay, scale)
    adamw = torch.optim.AdamW(adamw_groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    return [muon, adamw]


@contextmanager
def single_precision_muon() -> Iterator[None]:
    """torch.optim.Muon iterates in bfloat16 alone; within this, its very code does so in single precision."""
    with mock.patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone()):
        yield


def weights(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(found: Weights, expected: Weights) -> None:
    """Equal to single precision, but for key biases: softmax cancels them, so that their gradient is rounding alone."""
    assert sorted(found) == sorted(expected)
    for name in expected:
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
