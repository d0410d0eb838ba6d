"""Figures that differ between ranks: which rank is the slowest, and which has the least memory left."""

from __future__ import annotations

import resource
import socket
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.base.terminal import warn
from llmscale.distributed.process_group import gather_objects

SLOW_FACTOR = 1.5
"""A rank whose time is this many times the median of all is slow ..."""
SLOW_SECONDS = 0.05
"""... where it is at least so many seconds more, a step ..."""
SLOW_ROWS = 3
"""... and a warning comes when the same rank has been the slowest in so many rows, one after the other."""
_TIMES = {"data_seconds": "waits for data", "forward_seconds": "takes for its forward passes"}


class RankExtremes:
    """Gathers figures of all ranks; the slowest is named in each row, and once on stderr."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.hosts = [socket.gethostname()]
        """Of each rank."""
        self._slow: dict[str, tuple[int, int]] = {}
        self._told: set[tuple[str, int]] = set()

    def meet(self) -> None:
        """Learn on which node each rank is; collective."""
        self.hosts = gather_objects(socket.gethostname())

    def gather(self, **own: float) -> dict[str, dict[str, Any]]:
        """For each of this rank's figures, and `memory_bytes`: the median over ranks, the most, and the rank and node
        that have that. Collective.

        `memory_bytes` is the most that a rank has held so far: of the GPU's memory in tensors, else of the machine's.
        """
        names = [*own, "memory_bytes"]
        mine = torch.tensor([*own.values(), float(self._memory())], dtype=torch.float64)
        everyone = [mine]
        if len(self.hosts) > 1:
            everyone = [torch.empty_like(mine) for _ in self.hosts]
            dist.all_gather(everyone, mine)
        figures = torch.stack(everyone)
        found = {name: self._extreme(figures[:, column]) for column, name in enumerate(names)}
        for name in own:
            self._note(name, found[name])
        return found

    def _extreme(self, values: torch.Tensor) -> dict[str, Any]:
        rank = int(values.argmax())
        # The lower one of an even number, so that of two ranks one is compared with the other.
        return {"median": float(values.median()), "most": float(values[rank]), "rank": rank, "node": self.hosts[rank]}

    def _note(self, name: str, figure: dict[str, Any]) -> None:
        """Tell of a rank that has been far slower than the others for a while."""
        rank, excess = figure["rank"], figure["most"] - figure["median"]
        slow = figure["most"] > SLOW_FACTOR * figure["median"] and excess > SLOW_SECONDS
        before, rows = self._slow.get(name, (rank, 0))
        self._slow[name] = (rank, (rows if before == rank else 0) + 1) if slow else (rank, 0)
        if self._slow[name][1] >= SLOW_ROWS and (name, rank) not in self._told:
            self._told.add((name, rank))
            warn(
                f"rank {rank} on {figure['node']} {_TIMES[name]} {figure['most']:.3g} s a step, where the median of"
                f" {len(self.hosts)} ranks is {figure['median']:.3g} s; all ranks wait for it",
                shown=not dist.is_initialized() or dist.get_rank() == 0,
            )

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which Linux gives in KiB
