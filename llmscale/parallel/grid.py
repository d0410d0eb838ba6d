"""The rank grid: the only place that computes which rank has which part of the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch.distributed as dist

from data_pipeline.errors import UserError

Axis = Literal["pipeline", "data", "sequence", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "sequence", "tensor")


@dataclass(frozen=True)
class RankGrid:
    """Sizes of the four axes and this rank's place on them.

    `rank = ((p * DP + d) * SP + s) * TP + t`: tensor parallelism is innermost, so that a tensor-parallel group stays
    on one node. Passed to DeepSpeed as `mpu`; a group of size 1 holds this rank alone.
    """

    pipeline: int = 1
    data: int = 1
    sequence: int = 1
    tensor: int = 1
    rank: int = 0
    groups: dict[Axis, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"rank {self.rank} does not fit on {self.world_size} ranks"
                f" = pipeline {self.pipeline} x data {self.data} x sequence {self.sequence} x tensor {self.tensor}"
            )

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.sequence * self.tensor

    def size(self, axis: Axis) -> int:
        """Number of ranks along `axis`."""
        return int(getattr(self, axis))

    def coordinate(self, axis: Axis, rank: int | None = None) -> int:
        """Place of `rank` (this rank when not given) along `axis`, from 0."""
        stride = self._stride(axis)
        return (self.rank if rank is None else rank) // stride % self.size(axis)

    def ranks(self, axis: Axis) -> list[int]:
        """Global ranks that differ from this one along `axis` only, in order."""
        first = self.rank - self.coordinate(axis) * self._stride(axis)
        return [first + place * self._stride(axis) for place in range(self.size(axis))]

    def _stride(self, axis: Axis) -> int:
        stride = 1
        for inner in reversed(AXES):
            if inner == axis:
                return stride
            stride *= self.size(inner)
        raise AssertionError(axis)

    def with_groups(self) -> RankGrid:
        """The grid with a process group per axis; every rank must call this at the same time."""
        groups: dict[Axis, Any] = {}
        for axis in AXES:
            members = self.ranks(axis)
            whole = len(members) == dist.get_world_size()
            groups[axis] = dist.group.WORLD if whole else dist.new_group(members, use_local_synchronization=True)
        return RankGrid(self.pipeline, self.data, self.sequence, self.tensor, self.rank, groups)

    # What DeepSpeed asks of a Megatron-style mpu.
    def get_data_parallel_group(self) -> Any:
        return self.groups["data"]

    def get_data_parallel_rank(self) -> int:
        return self.coordinate("data")

    def get_data_parallel_world_size(self) -> int:
        return self.data

    def get_model_parallel_group(self) -> Any:
        return self.groups["tensor"]

    def get_model_parallel_rank(self) -> int:
        return self.coordinate("tensor")

    def get_model_parallel_world_size(self) -> int:
        return self.tensor
