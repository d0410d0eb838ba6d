"""The rank grid: the only place that computes which rank has which part of the work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch.distributed as dist

from data_pipeline.base.errors import UserError
from llmscale.config.system import ParallelConfig

Axis = Literal["pipeline", "data", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "context", "tensor")
REPLICAS: tuple[Axis, ...] = ("data", "context")
"""Axes along which all ranks have the same parameters: what DeepSpeed takes for data parallelism."""


@dataclass(frozen=True)
class RankGrid:
    """Sizes of the four axes and this rank's place on them.

    `rank = ((p * DP + d) * SP + c) * TP + t`: tensor parallelism is innermost, so that a tensor-parallel group stays
    on one node. Passed to DeepSpeed as `mpu`; a group of size 1 holds this rank alone.
    """

    pipeline: int = 1
    data: int = 1
    context: int = 1
    tensor: int = 1
    rank: int = 0
    groups: dict[tuple[int, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    """Process groups by their global ranks."""
    expert: int = 1
    """How many data-parallel ranks, one after the other, share the experts: no axis, but a cut of `data`."""

    @classmethod
    def of(cls, parallel: ParallelConfig, ranks: int, rank: int) -> RankGrid:
        """The grid of a legal layout on so many ranks, without process groups."""
        data = ranks // (parallel.pipeline * parallel.context * parallel.tensor)
        return cls(parallel.pipeline, data, parallel.context, parallel.tensor, rank=rank, expert=parallel.expert)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"rank {self.rank} does not fit on {self.world_size} ranks"
                f" = pipeline {self.pipeline} x data {self.data} x context {self.context} x tensor {self.tensor}"
            )

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.context * self.tensor

    def size(self, axis: Axis) -> int:
        """Number of ranks along `axis`."""
        return int(getattr(self, axis))

    def coordinate(self, axis: Axis, rank: int | None = None) -> int:
        """Place of `rank` (this rank when not given) along `axis`, from 0."""
        stride = self._stride(axis)
        return (self.rank if rank is None else rank) // stride % self.size(axis)

    def ranks(self, *axes: Axis) -> list[int]:
        """Global ranks that differ from this one along `axes` only, in order."""
        origin = self.rank - sum(self.coordinate(axis) * self._stride(axis) for axis in axes)
        places = itertools.product(*(range(self.size(axis)) for axis in axes))
        return sorted(
            origin + sum(place * self._stride(axis) for axis, place in zip(axes, each, strict=True)) for each in places
        )

    def expert_ranks(self) -> list[int]:
        """Global ranks that share the experts with this one, itself included, in the order of the experts."""
        ranks = self.ranks("data")
        first = ranks.index(self.rank) // self.expert * self.expert
        return ranks[first : first + self.expert]

    def expert_replicas(self) -> list[int]:
        """Global ranks that have the same experts as this one, itself included, in order."""
        ranks = self.ranks("data")
        return ranks[ranks.index(self.rank) % self.expert :: self.expert]

    @property
    def is_sample_leader(self) -> bool:
        """Whether this rank speaks for its samples, which all ranks with the same place in `data` have."""
        return not any(self.coordinate(axis) for axis in AXES if axis != "data")

    @property
    def is_loss_reporter(self) -> bool:
        """Whether this rank's sums of the loss count: those of the last stage, where others of its tensor-parallel
        group have the same."""
        return not self.coordinate("tensor") and self.coordinate("pipeline") == self.pipeline - 1

    @property
    def has_scores(self) -> bool:
        """Whether this rank has the scores of its samples, and is the first of those that do."""
        return self.is_loss_reporter and not self.coordinate("context")

    def _stride(self, axis: Axis) -> int:
        stride = 1
        for inner in reversed(AXES):
            if inner == axis:
                return stride
            stride *= self.size(inner)
        raise AssertionError(axis)

    def with_groups(self) -> RankGrid:
        """The grid with a process group per axis, and one of all replicas; every rank must call this together."""
        grid = replace(self, groups={})
        for axes in (*((axis,) for axis in AXES), REPLICAS):
            grid.group_of(grid.ranks(*axes))
        return grid

    def group(self, *axes: Axis) -> Any:
        """The process group of the ranks that differ from this one along `axes` only."""
        return self.groups[tuple(self.ranks(*axes))]

    def group_of(self, ranks: Sequence[int]) -> Any:
        """The process group of some ranks, this one among them, made when there is none; all of them must ask."""
        key = tuple(ranks)
        if key not in self.groups:
            whole = len(key) == dist.get_world_size()
            self.groups[key] = dist.group.WORLD if whole else dist.new_group(list(key), use_local_synchronization=True)
        return self.groups[key]

    # What DeepSpeed asks of a Megatron-style mpu.
    def get_data_parallel_group(self) -> Any:
        return self.group(*REPLICAS)

    def get_data_parallel_rank(self) -> int:
        return self.ranks(*REPLICAS).index(self.rank)

    def get_data_parallel_world_size(self) -> int:
        return self.data * self.context

    def get_model_parallel_group(self) -> Any:
        return self.group("tensor")

    def get_model_parallel_rank(self) -> int:
        return self.coordinate("tensor")

    def get_model_parallel_world_size(self) -> int:
        return self.tensor
