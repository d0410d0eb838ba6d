"""Training a head alone: what the frozen body makes of a row is computed once, and read from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.base.terminal import warn
from data_pipeline.batch import Batch
from llmscale.distributed.process_group import all_reduce_sum
from llmscale.finetune.feature_store import FeatureStore, row_keys, row_lengths


class Features:
    """What a head reads of rows that have been read before: a vector of each, or of each of their tokens."""

    def __init__(
        self, store: FeatureStore, compute: Callable[[Batch], Tensor], device: torch.device, tokens: bool
    ) -> None:
        """
        Args:
            compute: (B, channels), or (B, T, channels) with `tokens`, of a batch on the device; collective where ranks
                share parameters.
            tokens: whether the head reads the hidden state of each token.
        """
        self._store = store
        self._compute = compute
        self._device = device
        self._tokens = tokens

    def given(self, batches: list[Batch]) -> list[Batch]:
        """Batches with `features` in place of tokens; collective over all ranks, which must give equally many.

        Where any rank lacks a row, all ranks compute all of their batches, since they may share parameters: so the
        vectors of a row come from the batch that has it first, on an interrupted run as on another.
        """
        keys = [row_keys(batch) for batch in batches]
        found = [self._store.get(each) for each in keys]
        if all_reduce_sum([float(sum(vectors is None for vectors in found))])[0]:
            found = [self._computed(batch, each) for batch, each in zip(batches, keys, strict=True)]
        known = [vectors for vectors in found if vectors is not None]
        return [self._with(batch, vectors) for batch, vectors in zip(batches, known, strict=True)]

    def _computed(self, batch: Batch, keys: list[bytes]) -> Tensor:
        """The vectors of a batch's rows, one row behind the other: as they are kept from now on."""
        vectors = self._compute(batch.to(self._device)).float().cpu()
        lengths = row_lengths(batch) if self._tokens else [1] * batch.size
        if self._tokens:
            vectors = vectors[_padding_mask(batch)]
        self._store.add(keys, vectors, lengths)
        kept = self._store.get(keys)
        return vectors if kept is None else kept

    def _with(self, batch: Batch, vectors: Tensor) -> Batch:
        if not self._tokens:
            return _condensed(batch, vectors)
        features = vectors.new_zeros(*batch.inputs.shape, vectors.shape[1])
        features[_padding_mask(batch)] = vectors
        return replace(batch, features=features)

    def flush(self) -> None:
        """Write what has been computed since; a run whose disk is full goes on without."""
        try:
            self._store.flush()
        except OSError as error:
            warn(f"what the body makes of rows could not be kept: {error.strerror} ({error.filename})")


def _padding_mask(batch: Batch) -> Tensor:
    """(B, T) booleans, False for padding."""
    return torch.arange(batch.inputs.shape[1]) < torch.tensor(row_lengths(batch))[:, None]


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
