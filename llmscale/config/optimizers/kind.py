"""What an optimizer declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerKind:
    """What the config, the rules of layouts, `plan` and the engine ask of an optimizer."""

    description: str
    """What it is and where it comes from."""
    kept: Callable[[Any, bool], int]
    """Values kept of each element beside its weight, by the `optimizer` section and whether it is of a matrix inside of
    a block."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings that its paper takes otherwise than the `optimizer` section does."""
    whole_tensors: bool = False
    """Whether the update of an element of a matrix depends on all of the matrix."""
    proportional: bool = False
    """Whether an update grows with the gradient, so that rounding of the one is no more than rounding of the other."""
    hidden_apart: bool = False
    """Whether it updates the matrices that map hidden states to hidden states in a way of their own; `lr` is theirs and
    `adamw_lr` that of everything else."""
