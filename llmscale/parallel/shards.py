"""Which part of a global tensor a rank's parameter is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Shard:
    """A rectangle of a global tensor, and whether this rank is the one that speaks for it."""

    shape: tuple[int, ...]
    """Shape of the global tensor."""
    offsets: tuple[int, ...]
    """First coordinate of the rectangle, one per dimension."""
    sizes: tuple[int, ...]
    """Extent of the rectangle, one per dimension: the shape of the parameter."""
    first: bool = True
    """Whether no rank before this one in its tensor-parallel group holds the same rectangle: only the first counts in
    the norm and writes to checkpoints."""
    expert: bool = False
    """Whether it is of experts that data-parallel ranks share: only some of them hold the same rectangle."""

    @staticmethod
    def whole(shape: Sequence[int], first: bool = True) -> Shard:
        """All of a tensor."""
        return Shard(tuple(shape), (0,) * len(shape), tuple(shape), first)

    @property
    def cut(self) -> bool:
        """Whether it is not the whole tensor."""
        return self.sizes != self.shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """The rectangle as an index of the global tensor."""
        return tuple(slice(low, low + size) for low, size in zip(self.offsets, self.sizes, strict=True))

    def narrowed(self, dim: int, part: int, parts: int, first: bool = True) -> Shard:
        """The `part`-th of `parts` equal parts of this rectangle along `dim`."""
        assert self.sizes[dim] % parts == 0, f"{self.sizes} cannot be cut into {parts} along dim {dim}"
        size = self.sizes[dim] // parts
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[dim] += part * size
        sizes[dim] = size
        return replace(self, offsets=tuple(offsets), sizes=tuple(sizes), first=self.first and first)


def set_shard(parameter: nn.Parameter, shard: Shard) -> None:
    """Say what a parameter is a part of, to us and to DeepSpeed's norm of the gradient.

    DeepSpeed adds up squares over the tensor-parallel group: of marked parameters those of all ranks, of the others
    those of its first rank only.
    """
    parameter.shard = shard  # type: ignore[attr-defined]
    if shard.cut and shard.first:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


def shard_of(parameter: Any) -> Shard:
    """What `set_shard` said; a whole tensor where it said nothing."""
    # At ZeRO 3 the parameter's own shape is that of nothing.
    return getattr(parameter, "shard", None) or Shard.whole(getattr(parameter, "ds_shape", parameter.shape))


def narrow(module: nn.Module, name: str, shard: Shard) -> None:
    """Give a module on the meta device a parameter of the rectangle's size in place of its own."""
    parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.empty(shard.sizes, dtype=parameter.dtype, device=parameter.device)))
