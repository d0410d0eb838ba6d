"""Losses that compare all samples of the global batch, whatever ranks and micro batches it is cut into.

Each sample is read twice (GradCache; Gao et al. 2021, section 3): without gradients, for what the others' losses take
of it, and once more with the gradient of the whole loss by that. The gradient by the weights is then that of the global
batch, and neither its size nor what it comes to depends on how much of it a rank has room for.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.objectives.loss import Loss
from llmscale.parallel.grid import RankGrid


def with_whole_batch(micro_batches: list[Batch], represented: list[Tensor], loss: Loss, grid: RankGrid) -> list[Batch]:
    """The micro batches of this rank with the labels that `Loss.of_whole_batch` makes of all ranks' samples; collective
    over the data-parallel ranks.

    Args:
        represented: (B, ...) of each micro batch, as `Loss.represent` makes it.
    """
    names = list(micro_batches[0].labels)
    own = [torch.cat([batch.sample_ids for batch in micro_batches]), torch.cat(represented)]
    own += [torch.cat([batch.labels[name] for batch in micro_batches]) for name in names]
    ids, everything, *labels = (_gathered(part, grid) for part in own)
    # In the order of the samples, so that sums are the same whoever has which.
    order = ids.argsort()
    found = loss.of_whole_batch(
        everything[order], {name: rows[order] for name, rows in zip(names, labels, strict=True)}
    )
    place = order.argsort()[grid.coordinate("data") * len(own[0]) :][: len(own[0])]
    sizes = [batch.size for batch in micro_batches]
    parts = {name: rows[place].split(sizes) for name, rows in found.items()}
    return [
        replace(batch, labels=batch.labels | {name: rows[number] for name, rows in parts.items()})
        for number, batch in enumerate(micro_batches)
    ]


def _gathered(own: Tensor, grid: RankGrid) -> Tensor:
    """(ranks * n, ...) of (n, ...) on each data-parallel rank."""
    if grid.data == 1:
        return own
    rows = [torch.empty_like(own) for _ in range(grid.data)]
    dist.all_gather(rows, own.contiguous(), group=grid.group("data"))
    return torch.cat(rows)
