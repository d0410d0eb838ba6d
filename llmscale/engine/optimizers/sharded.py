"""What an optimizer must know of tensors that ZeRO has flattened and cut: which part of which one lies where."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmscale.slices.tensor_slice import TensorSlice


@dataclass
class Part:
    """What a partition, the flat tensor that an optimizer updates, holds of one parameter.

    Every rank of the data-parallel group has a part of every parameter of a partition, in the same order, be it empty:
    the ranks must call the same collectives.
    """

    name: str
    """Canonical name of the parameter; empty for a whole parameter that was never bound."""
    held: TensorSlice
    """What is held of the whole parameter; empty where the rank owns nothing of it."""
    offset: int
    """Where that begins in the partition."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(start, count) of every rank of the group."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """State of the whole parameter, by kind: the same on every rank, and not of the parameter's shape."""

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.held.shape)

    @property
    def stack(self) -> tuple[int, int, int]:
        """(matrices, rows, columns): the last two dims of the shape are a matrix, those before number it."""
        *leading, rows, columns = self.held.shape
        return math.prod(leading), rows, columns

    @property
    def holders(self) -> list[int]:
        """Ranks of the group that hold something of it, in the order of what they hold."""
        return sorted((rank for rank, (_, count) in enumerate(self.spans) if count), key=lambda rank: self.spans[rank])

    def of(self, partition: Tensor) -> Tensor:
        """This part of a flat tensor that is laid out as the partition, as a view."""
        return partition.view(-1).narrow(0, self.offset, self.held.numel)

    def rectangles(self, values: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
        """The part's `values` as at most five contiguous views (matrices, rows, columns), and where each lies.

        A flat range of a stack of matrices begins and ends within a row and within a matrix; what lies between are
        whole rows and whole matrices.
        """
        flat = TensorSlice.whole(self.stack).flat_range(self.held.start, self.held.end)
        for low, high in flat.boxes():
            matrices, rows, columns = map(slice, low, high)
            yield matrices, rows, columns, flat.view(values, (low, high))


class ShardedOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer whose update of an element depends on more of its tensor than this rank may own.

    Out of the box it updates whole parameters. Where ZeRO replaces them by partitions, `bind` says what each holds;
    from then on `step` is a collective over the group.
    """

    def __init__(self, groups: Any, defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        self._bound: dict[Tensor, tuple[list[Part], Any]] = {}

    def bind(self, partition: Tensor, parts: list[Part], group: Any) -> None:
        """Say what `partition` holds; called on all ranks of `group`, with parts of one order of parameters."""
        world = dist.get_world_size(group)
        own = torch.tensor(
            [[part.held.start, part.held.numel] for part in parts], dtype=torch.int64, device=partition.device
        )
        found = [own] if world == 1 else [torch.empty_like(own) for _ in range(world)]
        if world > 1:
            dist.all_gather(found, own, group=group)
        for part, spans in zip(parts, torch.stack(found, dim=1).tolist(), strict=True):
            part.spans = [(int(start), int(count)) for start, count in spans]
        self._bound[partition] = parts, group if world > 1 else None

    def parts(self, partition: Tensor) -> list[Part]:
        """What `partition` holds; a tensor that was not bound is a whole parameter."""
        if partition not in self._bound:
            whole = Part("", TensorSlice.whole(partition.shape), 0, [(0, partition.numel())])
            self._bound[partition] = [whole], None
        return self._bound[partition][0]

    @abstractmethod
    def create_state(self, partition: Tensor, options: dict[str, Any]) -> None:
        """Give `partition` the state from which its first update starts.

        Args:
            partition: bound before, or a whole parameter.
            options: of its parameter group.
        """

    @abstractmethod
    def update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        """Update `partition` in place; may overwrite `gradient`. Collective where the partition is bound to a group."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every partition that has a gradient; overwrites gradients.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure")
        for options in self.param_groups:
            for partition in options["params"]:
                if partition.grad is None:
                    continue
                if not self.state[partition]:
                    self.create_state(partition, options)
                self.update(partition, partition.grad, options)

    def _sum_over_ranks(self, partition: Tensor, values: Tensor) -> None:
        """Sum `values` in place over the ranks that hold the other parts."""
        group = self._bound[partition][1]
        if group is not None:
            dist.all_reduce(values, group=group)

    def _map_whole(self, partition: Tensor, values: Tensor, function: Callable[[Part, Tensor], Tensor]) -> None:
        """Replace each tensor in `values`, laid out as `partition`, by `function` of the whole tensor, both flat.

        Each tensor is computed on one rank. Where a rank holds all of it, as ZeRO 1 and 2 leave most tensors, that is
        this rank, and nothing travels. The others are dealt to their holders, as many at a time as there are ranks.
        """
        cut = []
        for part in self.parts(partition):
            if len(part.holders) > 1:
                cut.append(part)
            elif part.held.numel:
                part.of(values).copy_(function(part, part.of(values)))
        group = self._bound[partition][1]
        world = dist.get_world_size(group) if cut else 1
        for first in range(0, len(cut), world):
            _exchange(cut[first : first + world], values, function, group)


def _exchange(parts: list[Part], values: Tensor, function: Callable[[Part, Tensor], Tensor], group: Any) -> None:
    """Bring each part's tensor together on one of its holders, compute there, and give everybody their parts back."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    owners = [part.holders[place % len(part.holders)] for place, part in enumerate(parts)]
    mine = [part for part, owner in zip(parts, owners, strict=True) if owner == rank]
    by_owner = [part for _, part in sorted(zip(owners, parts, strict=True), key=lambda pair: pair[0])]
    sent = [
        sum(part.held.numel for part, owner in zip(parts, owners, strict=True) if owner == to) for to in range(world)
    ]
    received = [sum(part.spans[source][1] for part in mine) for source in range(world)]
    outgoing = torch.cat([part.of(values) for part in by_owner])
    incoming = outgoing.new_empty(sum(received))
    dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
    pieces = iter(incoming.split([part.spans[source][1] for source in range(world) for part in mine]))
    table = [[next(pieces) for _ in mine] for _ in range(world)]
    for column, part in enumerate(mine):
        held = [table[source][column] for source in part.holders]
        result = function(part, torch.cat(held))
        for piece, own in zip(held, result.split([piece.numel() for piece in held]), strict=True):
            piece.copy_(own)
    dist.all_to_all_single(outgoing, incoming, sent, received, group=group)
    for part, piece in zip(by_owner, outgoing.split([part.held.numel for part in by_owner]), strict=True):
        part.of(values).copy_(piece)


def zeros(partition: Tensor) -> Tensor:
    """State of a partition that has a value per element."""
    return torch.zeros_like(partition, dtype=torch.float32, memory_format=torch.preserve_format)


def step_count(partition: Tensor) -> Tensor:
    """State that counts the updates of a partition, where torch's fused kernels want it."""
    return torch.zeros((), dtype=torch.float32, device=partition.device)
