"""Loss, perplexity and bits per byte on held-out documents, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from data_pipeline.batch import Batch, with_label
from data_pipeline.finite.heldout import EvaluationSet

_ALWAYS = ("loss", "samples", "documents")
Reduce = Callable[[list[float]], list[float]]


def evaluate(
    measure: Callable[[Batch], list[float]],
    documents: EvaluationSet,
    batch_size: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    reduce: Reduce = lambda values: values,
    counted: bool = True,
    max_samples: int | None = None,
    measures: Sequence[str] = (),
    text: bool = True,
    together: bool = False,
    shared: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Mean loss over all targets of the set.

    Every rank runs equally many forward passes, filled with samples of weight 0, since unequal counts would
    deadlock sharded models.

    Args:
        measure: sum of weight x loss over a batch's targets, in nats, and the sum of each of `measures`.
        batch_size: samples of a forward pass.
        reduce: sums each number over all ranks, in double precision.
        counted: whether the targets of this rank's samples count; else another rank has the same.
        max_samples: evaluate on an even sample of this many; None: on all.
        measures: names of what is measured besides the loss; each as a mean over the targets.
        text: whether the targets are the documents' text, so that there is a loss per byte.
        together: whether samples of a batch are measured against each other, so that batches are of one size whatever
            the ranks.
        shared: which of `measures` the loss needs, as its mean over the set (`Loss.shared`): that takes twice as long.
        stop: whether this rank wants to leave; when any does, all leave together.

    Returns:
        loss (nats per token), perplexity, bits_per_byte (total bits / UTF-8 bytes of the documents; where not all
        tokens are predicted, in an even sample or of hidden ones, the bytes in proportion), tokens, bytes, documents.
        None when a rank asked to leave.
    """
    if shared is not None:
        first = evaluate(
            measure,
            documents,
            batch_size,
            rank=rank,
            ranks=ranks,
            reduce=reduce,
            counted=counted,
            max_samples=max_samples,
            measures=measures,
            text=text,
            together=together,
            stop=stop,
        )
        if first is None:
            return None
        alone, mean = measure, first[shared]

        def measure(batch: Batch) -> list[float]:
            return alone(with_label(batch, shared, mean))

    chosen = even_sample(len(documents), max_samples)
    sums, targets = [0.0] * (1 + len(measures)), 0.0
    for batch in _share(documents, chosen, batch_size, rank, ranks, together):
        sums = [total + more for total, more in zip(sums, measure(batch), strict=True)]
        targets += float(batch.weights.sum(dtype=torch.float64)) * counted
        if reduce([float(stop())])[0]:
            return None
    *sums, targets = reduce([*sums, targets])
    loss, *means = (total / max(targets, 1) for total in sums)
    if not text:
        return {
            "loss": loss,
            **dict(zip(measures, means, strict=True)),
            "samples": round(targets),
            "documents": documents.documents,
        }
    size = documents.bytes * targets / max(documents.tokens, 1)
    return {
        "loss": loss,
        **dict(zip(measures, means, strict=True)),
        "perplexity": math.inf if loss >= 700 else math.exp(loss),
        "bits_per_byte": sums[0] / math.log(2) / max(size, 1),
        "tokens": round(targets),
        "bytes": round(size),
        "documents": documents.documents,
    }


def told(figures: dict[str, Any]) -> str:
    """The figures in a line."""
    if "bits_per_byte" in figures:
        return (
            f"loss {figures['loss']:.4f} nats/token, perplexity {figures['perplexity']:.2f},"
            f" {figures['bits_per_byte']:.4f} bits per byte ({figures['documents']} documents,"
            f" {figures['bytes']:,} bytes, {figures['tokens']:,} tokens"
        )
    others = (f", {name.replace('_', ' ')} {value:.4f}" for name, value in figures.items() if name not in _ALWAYS)
    return f"loss {figures['loss']:.4f}{''.join(others)} ({figures['documents']} documents"


def even_sample(count: int, most: int | None) -> list[int]:
    """Indices 0..count-1, or `most` of them at even distances."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _share(
    documents: EvaluationSet, chosen: list[int], size: int, rank: int, ranks: int, together: bool
) -> Iterator[Batch]:
    # A batch that is larger than what there is would be filling.
    size = min(size, max(1, -(-len(chosen) // (1 if together else ranks))))
    rounds = -(-len(chosen) // (size * ranks))
    padded = chosen + [-1] * (rounds * size * ranks - len(chosen))
    for first in range(rank * size, len(padded), size * ranks):
        yield documents.batch(padded[first : first + size])
