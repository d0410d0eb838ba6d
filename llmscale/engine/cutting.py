"""Micro batches of a step, without padding that none of their samples needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.engine.settings import EngineSettings
from llmscale.model.heads import Head
from llmscale.objectives import model_side


class Cutting:
    """How one rank's samples of a step become micro batches."""

    def __init__(self, config: EngineSettings, head: Head) -> None:
        """Rows lose what follows their last token, or their last target, where samples are of unequal length, nothing
        looks at the length of a row, and no other rank has a part of it. What dropout drops does not depend on it."""
        model, parallel = config.model, config.parallel
        whole = parallel.pipeline == 1 and parallel.context == 1 and not parallel.sequence_parallel
        drawn = model.attention_dropout > 0 and not config.engine.dropout_layout_free
        unequal = model_side(config.objective).shape(config.sequence_length).masked
        free = whole and unequal and not drawn and model.experts is None and not head.whole_batch
        labels = model.head is not None
        self._shortens = free and (labels or model.architecture != "encoder")
        self._two = model.architecture == "encoder_decoder"
        self._by_targets = not labels
        # With dropout a head of tokens needs whole sequences, but its labels are of positions all the same.
        self._each = head.reads == "each" or (model.head is not None and model.head.pooling == "each")

    def __call__(self, batch: Batch, micro_batch: int) -> list[Batch]:
        """Micro batches of samples of nearly one length, shortened to the longest: the sum over a step is that over the
        same samples, in another order."""
        if not self._shortens:
            return batch.split(micro_batch)
        lengths = self._lengths(batch).sum(0)
        order = lengths.argsort(stable=True)
        return [self._shortened(part) for part in batch.map(lambda tensor: tensor[order]).split(micro_batch)]

    def _lengths(self, batch: Batch) -> Tensor:
        """(2, B): how much of `inputs` and of `encoder_inputs` each sample needs."""
        padding_mask = batch.encoder_weights
        if self._two:
            assert padding_mask is not None
            return torch.stack([_reach(batch.weights if self._by_targets else padding_mask), _reach(padding_mask)])
        read = batch.weights if self._by_targets else padding_mask
        if read is None or read.shape != batch.inputs.shape:
            read = torch.ones(batch.inputs.shape)
        return torch.stack([_reach(read), torch.zeros(batch.size, dtype=torch.int64)])

    def _shortened(self, batch: Batch) -> Batch:
        reads, hears = (max(int(lengths.max()), 1) for lengths in self._lengths(batch))
        width = batch.inputs.shape[1]

        def short(tensor: Tensor | None) -> Tensor | None:
            whole = tensor is None or tensor.dim() < 2 or tensor.shape[1] != width
            return tensor if whole else tensor[:, :reads]  # type: ignore[index]

        def needed(tensor: Tensor) -> Tensor:
            found = short(tensor)
            assert found is not None
            return found

        heard = batch.encoder_weights
        found = replace(
            batch,
            inputs=needed(batch.inputs),
            segment_ids=short(batch.segment_ids),
            positions=short(batch.positions),
            encoder_inputs=None if batch.encoder_inputs is None else batch.encoder_inputs[:, :hears],
            encoder_weights=heard[:, :hears] if self._two and heard is not None else short(heard),
        )
        if not self._each:
            return found
        labels = {name: needed(values) for name, values in batch.labels.items()}
        return replace(found, targets=needed(batch.targets), weights=needed(batch.weights), labels=labels)


def _reach(weights: Tensor) -> Tensor:
    """(B,): how many columns of (B, T) weights there are up to the last one that counts."""
    places = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    return ((weights > 0) * places).amax(1)
