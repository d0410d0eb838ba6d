"""Communication inside the forward and backward pass, as differentiable functions.

Of tensor parallelism (Shoeybi et al. 2019, section 3: f is `copy`, g is `total`) and of sharing the residual stream by
positions (Korthikanti et al. 2022, section 4.2.2: g is `gather`, its conjugate `scatter`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

POSITIONS = 1
"""The dimension of positions in (B, T, channels)."""


# torch 2.13 has renamed both.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copy(x: Tensor, group: Any) -> Tensor:
    """`x` itself, which all ranks have; its gradient is the sum of what every rank makes of it."""
    return _Copy.apply(x, group)


def total(x: Tensor, group: Any) -> Tensor:
    """The sum of `x` over the ranks; its gradient, the same on all of them, is that of every summand."""
    return _Total.apply(x, group)


def gather(x: Tensor, group: Any) -> Tensor:
    """All ranks' positions, (B, T / ranks, C) to (B, T, C), for ranks that each make something else of them."""
    return _Gather.apply(x, group)


def scatter(x: Tensor, group: Any) -> Tensor:
    """This rank's positions of the sum over the ranks, (B, T, C) to (B, T / ranks, C)."""
    return _Scatter.apply(x, group)


def split(x: Tensor, group: Any) -> Tensor:
    """This rank's positions of what all ranks have, (B, T, C) to (B, T / ranks, C); all get the whole gradient."""
    return _Split.apply(x, group)


def join(x: Tensor, group: Any) -> Tensor:
    """All ranks' positions, (B, T / ranks, C) to (B, T, C), for ranks that all go on to make the same of them."""
    return _Join.apply(x, group)


def exchange(x: Tensor, group: Any, split_dim: int, join_dim: int) -> Tensor:
    """All to all: the ranks, which have parts of `x` along `join_dim`, get all of that and parts along `split_dim`."""
    return _Exchange.apply(x, group, split_dim, join_dim)


def travel(rows: Tensor, group: Any, sent: list[int], received: list[int]) -> Tensor:
    """All to all of rows, (sum of `sent`, C) to (sum of `received`, C): the first `sent[0]` go to the first rank, and
    so on; what comes lies in the order of the ranks that sent it."""
    return _Travel.apply(rows, group, sent, received)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _sum(gradient, ctx.group), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _scattered(gradient, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _gathered(gradient, ctx.group), None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _own(x, group).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _gathered(gradient, ctx.group), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _own(gradient, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, split_dim: int, join_dim: int) -> Tensor:
        ctx.group, ctx.dims = group, (join_dim, split_dim)
        return _exchanged(x, group, split_dim, join_dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _exchanged(gradient, ctx.group, *ctx.dims), None, None, None


class _Travel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any, sent: list[int], received: list[int]) -> Tensor:
        ctx.group, ctx.counts = group, (received, sent)
        return _travelled(rows, group, sent, received)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _travelled(gradient, ctx.group, *ctx.counts), None, None, None


def _sum(x: Tensor, group: Any) -> Tensor:
    # A copy: what autograd hands over may be somebody else's too.
    found = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found, group=group)
    return found


def _own(x: Tensor, group: Any) -> Tensor:
    size = x.shape[POSITIONS] // dist.get_world_size(group)
    return x.narrow(POSITIONS, dist.get_rank(group) * size, size)


def _gathered(x: Tensor, group: Any) -> Tensor:
    ranks = dist.get_world_size(group)
    found = x.new_empty(ranks * x.shape[0], *x.shape[1:])
    _all_gather(found, x.contiguous(), group=group)
    return found.unflatten(0, (ranks, -1)).movedim(0, POSITIONS).flatten(POSITIONS, POSITIONS + 1)


def _scattered(x: Tensor, group: Any) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = x.unflatten(POSITIONS, (ranks, -1)).movedim(POSITIONS, 0).flatten(0, 1)
    found = x.new_empty(x.shape[0], parts.shape[1], *x.shape[2:])
    _reduce_scatter(found, parts.contiguous(), group=group)
    return found


def _exchanged(x: Tensor, group: Any, split_dim: int, join_dim: int) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = x.unflatten(split_dim, (ranks, -1)).movedim(split_dim, 0).contiguous()
    found = torch.empty_like(parts)
    dist.all_to_all_single(found, parts, group=group)
    # The dim of the ranks comes to lie before the one that they had parts of.
    return found.movedim(0, join_dim).flatten(join_dim, join_dim + 1)


def _travelled(rows: Tensor, group: Any, sent: list[int], received: list[int]) -> Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent, group=group)
    return found
