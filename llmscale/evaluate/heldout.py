"""Loss, perplexity and bits per byte on held-out documents, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data_pipeline.batch import Batch
from data_pipeline.finite.heldout import EvaluationSet

Reduce = Callable[[list[float]], list[float]]


def evaluate(
    loss_of: Callable[[Batch], float],
    documents: EvaluationSet,
    batch_size: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    reduce: Reduce = lambda values: values,
    counted: bool = True,
    max_samples: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Mean loss over all targets of the set.

    Every rank runs equally many forward passes, filled with samples of weight 0, since unequal counts would
    deadlock sharded models.

    Args:
        loss_of: sum of weight x loss over a batch's targets, in nats.
        batch_size: samples of a forward pass.
        reduce: sums each number over all ranks, in double precision.
        counted: whether the targets of this rank's samples count; else another rank has the same.
        max_samples: evaluate on an even sample of this many; None: on all.
        stop: whether this rank wants to leave; when any does, all leave together.

    Returns:
        loss (nats per token), perplexity, bits_per_byte (total bits / UTF-8 bytes of the documents; where not all
        tokens are predicted, in an even sample or of hidden ones, the bytes in proportion), tokens, bytes, documents.
        None when a rank asked to leave.
    """
    chosen = even_sample(len(documents), max_samples)
    loss_sum = targets = 0.0
    for batch in _share(documents, chosen, batch_size, rank, ranks):
        loss_sum += loss_of(batch)
        targets += float(batch.weights.sum(dtype=torch.float64)) * counted
        if reduce([float(stop())])[0]:
            return None
    loss_sum, targets = reduce([loss_sum, targets])
    size = documents.bytes * targets / max(documents.tokens, 1)
    loss = loss_sum / max(targets, 1)
    return {
        "loss": loss,
        "perplexity": math.inf if loss >= 700 else math.exp(loss),
        "bits_per_byte": loss_sum / math.log(2) / max(size, 1),
        "tokens": round(targets),
        "bytes": round(size),
        "documents": documents.documents,
    }


def even_sample(count: int, most: int | None) -> list[int]:
    """Indices 0..count-1, or `most` of them at even distances."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _share(documents: EvaluationSet, chosen: list[int], size: int, rank: int, ranks: int) -> Iterator[Batch]:
    # A batch that is larger than what there is would be filling.
    size = min(size, max(1, -(-len(chosen) // ranks)))
    rounds = -(-len(chosen) // (size * ranks))
    padded = chosen + [-1] * (rounds * size * ranks - len(chosen))
    for first in range(rank * size, len(padded), size * ranks):
        yield documents.batch(padded[first : first + size])
