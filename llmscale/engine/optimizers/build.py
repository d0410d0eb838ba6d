"""From the config to an optimizer over groups of parameters."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from llmscale.config.optimizers import optimizer_kind
from llmscale.config.training import OptimizerConfig
from llmscale.engine.deepspeed.experts import expert_group_of
from llmscale.engine.optimizers.sharded import ShardedOptimizer
from llmscale.model.factors import MAGNITUDE

_TABLES = ("embedding", "position", "table")
"""Words that name a table, whose rows are looked up, also where it lies within a block."""


def build_optimizer(
    named: list[tuple[str, nn.Parameter]],
    settings: OptimizerConfig,
    arithmetic: torch.dtype = torch.float32,
    factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """The optimizer of `settings.name`; matrices have weight decay, vectors (norms and biases, also those of experts in
    a stack) none. Only of matrices does Adafactor keep second moments by row and column.

    Args:
        named: parameters by canonical name; those that take no gradient are left out.
        settings: the optimizer section.
        arithmetic: of what need not be exact (Muon's iteration); masters and state are fp32 in any case.
        factor: what multiplies the learning rate of a parameter, by name.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    matrices = [pair for pair in trained if is_matrix(pair[0], tuple(pair[1].shape))]
    vectors = [parameter for name, parameter in trained if not is_matrix(name, tuple(parameter.shape))]
    hidden: list[nn.Parameter] = []
    hidden_apart = optimizer_kind(settings.name).hidden_apart
    if hidden_apart:
        hidden = [parameter for name, parameter in matrices if hidden_matrix(name, tuple(parameter.shape))]
        matrices = [pair for pair in matrices if not hidden_matrix(pair[0], tuple(pair[1].shape))]
    # The learning rate is then that of hidden matrices; the others follow the schedule in proportion.
    scale = (settings.adamw_lr or settings.lr) / settings.lr if hidden_apart else 1.0
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": decay, "lr_scale": 1.0, "orthogonal": True},
        {"params": [parameter for _, parameter in matrices], "weight_decay": decay, "lr_scale": scale},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": scale, "factored": False},
    ]
    factors = {id(parameter): factor(name) for name, parameter in trained}
    groups = [part for group in groups for own in _by_factor(group, factors) for part in _by_ranks(own)]
    groups = [group for group in groups if group["params"]]
    return _module(settings.name).make(groups, settings, arithmetic)  # type: ignore[no-any-return]


def _by_factor(group: dict[str, Any], factors: dict[int, float]) -> Iterator[dict[str, Any]]:
    """A group, with the parameters of each factor of the learning rate in a group of their own."""
    own: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        own.setdefault(factors[id(parameter)], []).append(parameter)
    for value, parameters in own.items():
        yield group | {"params": parameters, "lr_scale": group["lr_scale"] * value}


def _by_ranks(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A group, with the experts that ranks share in a group of their own: DeepSpeed looks for these two keys."""
    names = [expert_group_of(parameter) for parameter in group["params"]]
    for name in sorted(set(names), key=str):
        own = [parameter for parameter, of in zip(group["params"], names, strict=True) if of == name]
        yield group | {"params": own} | ({} if name is None else {"moe": True, "name": name})


def _module(name: str) -> ModuleType:
    """The file of an optimizer, with how it is made and, where torch has it, with the state that it starts from."""
    return importlib.import_module(f"llmscale.engine.optimizers.{name}")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix or a stack of them; a stack of vectors, such as the biases of experts (experts,
    outputs), is none although it has two dimensions."""
    return len(shape) >= 2 and not name.endswith(("bias", MAGNITUDE))


def hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon orthogonalises a parameter: a matrix, or a stack of them, that maps hidden states to hidden states.

    Embeddings, positions, heads and everything else outside the blocks (of the decoder or the encoder) are not, nor
    are stacked biases of experts.
    """
    *modules, last = name.split(".")
    table = any(word in module for module in modules for word in _TABLES)
    return "blocks" in modules and len(shape) in (2, 3) and not table and is_matrix(last, shape)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the schedule's learning rate; groups that have a rate of their own move in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def create_state(name: str, optimizer: torch.optim.Optimizer, partition: Tensor, options: dict[str, Any]) -> None:
    """Give a partition the state that its first update would create, so that it can be saved and loaded before: the
    first real step then computes what it would have computed without.

    Args:
        name: of the optimizer.
        options: those of the partition's group.
    """
    state = optimizer.state[partition]
    if state:
        return
    if isinstance(optimizer, ShardedOptimizer):
        optimizer.create_state(partition, options)
    else:
        _module(name).create_state(state, partition, options)
