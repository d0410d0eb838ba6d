"""Processors that compute wrongly without a word: a micro batch is computed twice, and two results must be one.

Such errors are rare but real at scale (Dixit et al., Silent Data Corruptions at Scale, 2021, section 4).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from data_pipeline.batch import Batch
from llmscale.distributed.process_group import gather_objects
from llmscale.engine.engine import Engine


@dataclass(frozen=True)
class Fault:
    """Where a result was another one the second time."""

    rank: int
    node: str
    where: str
    """The module, or the gradient."""


class SilentError(Exception):
    """Every rank raises it before the step is done in which a rank has computed two results of the same."""

    def __init__(self, step: int, faults: list[Fault]) -> None:
        """`step`: the one (from 1) that was about to be done."""
        self.step, self.faults = step, faults
        said = "; ".join(f"rank {each.rank} on {each.node} at {each.where}" for each in faults)
        super().__init__(
            f"a silent error before step {step}: computed twice, a micro batch came out differently on {said}"
        )


def look_twice(engine: Engine, batch: Batch, step: int) -> None:
    """Compute a micro batch twice, and compare to the bit; collective.

    Args:
        batch: this rank's micro batch.
        step: the one (from 1) that is about to be done.

    Raises:
        SilentError: a rank has two results.
    """
    found = engine.computed_twice(batch)
    grid = engine.grid
    # What one rank of a stage of a replica gets wrong its others hear of: of those the first in the order of the
    # computation is to blame. Replicas hear of each other where experts are spread over them.
    group = (grid.coordinate("pipeline"), 0 if grid.expert > 1 else grid.coordinate("data"))
    place, where = found or (None, "")
    told = gather_objects((group, place, socket.gethostname(), where))
    first: dict[tuple[int, int], int] = {}
    for number, when, _, _ in told:
        if when is not None:
            first[number] = min(first.get(number, when), when)
    faults = [
        Fault(rank, node, where)
        for rank, (number, when, node, where) in enumerate(told)
        if when is not None and when == first[number]
    ]
    if faults:
        raise SilentError(step, faults)
