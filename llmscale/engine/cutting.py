"""Micro batches of a step, without padding that none of their samples needs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.config import RunConfig
from llmscale.model.heads import Head


class Cutting:
    """How one rank's samples of a step become micro batches."""

    def __init__(self, config: RunConfig, head: Head) -> None:
        """Rows lose padding at their ends where the head is no language model's, nothing looks at the length of a row,
        and no other rank has a part of it. What dropout drops does not depend on it."""
        model, parallel = config.model, config.parallel
        whole = parallel.pipeline == 1 and parallel.context == 1 and not parallel.sequence_parallel
        drawn = model.attention_dropout > 0 and not config.engine.dropout_layout_free
        of_rows = model.head is not None and model.experts is None and not head.whole_batch
        self._shortens = whole and of_rows and not drawn
        self._each = head.reads == "each"

    def __call__(self, batch: Batch, micro_batch: int) -> list[Batch]:
        """Micro batches of samples of nearly one length, shortened to the longest: the sum over a step is that over the
        same samples, in another order."""
        real = batch.encoder_weights
        if not self._shortens or real is None or real.shape != batch.inputs.shape:
            return batch.split(micro_batch)
        order = (real > 0).sum(1).argsort(stable=True)
        return [shortened(part, self._each) for part in batch.map(lambda tensor: tensor[order]).split(micro_batch)]


def shortened(batch: Batch, each: bool) -> Batch:
    """A batch without the columns at the end that are padding in all rows.

    Args:
        batch: of an encoder or a decoder.
        each: whether targets and labels are of positions.
    """
    real = batch.encoder_weights
    if real is None or real.shape != batch.inputs.shape:
        return batch
    length = batch.inputs.shape[1]
    columns = (real > 0).any(0).nonzero()
    longest = int(columns[-1]) + 1 if len(columns) else 1

    def short(tensor: Tensor) -> Tensor:
        return tensor[:, :longest] if tensor.dim() > 1 and tensor.shape[1] == length else tensor

    found = replace(
        batch,
        inputs=short(batch.inputs),
        encoder_weights=short(real),
        segment_ids=None if batch.segment_ids is None else short(batch.segment_ids),
        positions=None if batch.positions is None else short(batch.positions),
    )
    if not each:
        return found
    return replace(
        found,
        targets=short(batch.targets),
        weights=short(batch.weights),
        labels={name: short(labels) for name, labels in batch.labels.items()},
    )
