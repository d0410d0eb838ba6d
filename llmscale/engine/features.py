"""Training a head alone: what the frozen body makes of a row is computed once, and read from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.base.terminal import warn
from data_pipeline.batch import Batch
from llmscale.distributed.process_group import all_reduce_sum
from llmscale.finetune.feature_store import FeatureStore, row_keys


class Features:
    """The vectors that a head reads, of rows that have been read before."""

    def __init__(self, store: FeatureStore, compute: Callable[[Batch], Tensor], device: torch.device) -> None:
        """`compute`: (B, channels) of a batch on the device; collective where ranks share parameters."""
        self._store = store
        self._compute = compute
        self._device = device

    def given(self, batches: list[Batch]) -> list[Batch]:
        """Batches with `features` in place of tokens; collective over all ranks, which must give equally many.

        Where any rank lacks a row, all ranks compute all of their batches, since they may share parameters: so the
        vectors of a row come from the batch that has it first, on an interrupted run as on another.
        """
        keys = [row_keys(batch) for batch in batches]
        found = [self._store.get(each) for each in keys]
        lacking = sum(vectors is None for vectors in found)
        if all_reduce_sum([float(lacking)])[0]:
            for batch, each in zip(batches, keys, strict=True):
                self._store.add(each, self._compute(batch.to(self._device)))
            found = [self._store.get(each) for each in keys]
        return [
            _condensed(batch, vectors) for batch, vectors in zip(batches, found, strict=True) if vectors is not None
        ]

    def flush(self) -> None:
        """Write what has been computed since; a run whose disk is full goes on without."""
        try:
            self._store.flush()
        except OSError as error:
            warn(f"what the body makes of rows could not be kept: {error.strerror} ({error.filename})")


def _condensed(batch: Batch, vectors: Tensor) -> Batch:
    """A batch of rows of one token each, of which the hidden states are known."""
    return replace(
        batch,
        inputs=batch.inputs[:, :1],
        encoder_weights=None if batch.encoder_weights is None else torch.ones(batch.size, 1),
        segment_ids=None,
        positions=None,
        features=vectors[:, None],
    )
