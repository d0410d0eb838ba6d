"""Rows of requests in batches whose numbers do not depend on what else is in them.

A sum of floating-point numbers depends on its order, and kernels choose theirs by the shape of what they are given.
So a row's length in a batch depends on the row alone: rows are padded to the next multiple of 16, and only rows of one
padded length, which need the same kinds of masks, share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from data_pipeline.batch import Batch
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Row

MULTIPLE = 16
"""Products of fewer rows are left to other kernels."""


class Shape(NamedTuple):
    """What rows of one batch have in common."""

    length: int
    """Of the inputs, padded."""
    source_length: int
    """Of the encoder's inputs, padded; 0 without."""
    full: bool
    """Whether an encoder sees no padding, so that it needs no mask."""
    branched: bool
    prefixed: bool


@dataclass(frozen=True)
class RowBatch:
    """Rows of one shape."""

    numbers: tuple[int, ...]
    """Of the rows, among those given to `batches_of`."""
    batch: Batch


def padded_shape(row: Row, model: ModelConfig) -> Shape:
    """A row's shape: its lengths padded to multiples of 16, at most the model's context."""
    length = _padded(len(row.inputs), model.max_positions)
    if row.source is None:
        return Shape(length, 0, len(row.inputs) == length, row.branches is not None, row.prefix > 0)
    source = _padded(len(row.source), model.max_positions)
    return Shape(length, source, len(row.source) == source, False, False)


def _padded(length: int, most: int) -> int:
    return max(length, min(-(-length // MULTIPLE) * MULTIPLE, most))


def batches_of(rows: Sequence[Row], model: ModelConfig, pad: int, tokens: int) -> Iterator[RowBatch]:
    """All rows, those of one shape together.

    Args:
        pad: token id of padding.
        tokens: of one batch, about; a longer row is a batch by itself.
    """
    by_shape: dict[Shape, list[int]] = {}
    for number, row in enumerate(rows):
        by_shape.setdefault(padded_shape(row, model), []).append(number)
    for shape, numbers in sorted(by_shape.items(), reverse=True):
        size = max(1, tokens // (shape.length + shape.source_length))
        for first in range(0, len(numbers), size):
            some = tuple(numbers[first : first + size])
            yield RowBatch(some, make_batch([rows[number] for number in some], shape, model, pad))


def make_batch(rows: Sequence[Row], shape: Shape, model: ModelConfig, pad: int) -> Batch:
    """The batch of rows of one shape."""
    length, source_length = shape.length, shape.source_length
    size, asked = len(rows), max(len(row.targets) for row in rows)
    inputs = torch.full((size, length), pad)
    places = torch.full((size, asked), -1)
    tokens = torch.zeros(size, asked, dtype=torch.int64)
    for number, row in enumerate(rows):
        inputs[number, : len(row.inputs)] = torch.tensor(row.inputs)
        if row.targets:
            places[number, : len(row.targets)], tokens[number, : len(row.targets)] = torch.tensor(row.targets).T
    batch = Batch(
        inputs=inputs,
        targets=torch.zeros_like(inputs),
        weights=torch.zeros(size, length),
        sample_ids=torch.full((size,), -1),
        scored_places=places,
        scored_tokens=tokens,
    )
    if model.architecture == "encoder":
        batch.encoder_weights = _filled([len(row.inputs) for row in rows], length)
    elif model.architecture == "decoder":
        _decoder_fields(batch, rows, shape, model)
    else:
        batch.encoder_inputs = torch.full((size, source_length), pad)
        for number, row in enumerate(rows):
            assert row.source is not None
            batch.encoder_inputs[number, : len(row.source)] = torch.tensor(row.source)
        batch.encoder_weights = _filled([len(row.source or ()) for row in rows], source_length)
    return batch


def _decoder_fields(batch: Batch, rows: Sequence[Row], shape: Shape, model: ModelConfig) -> None:
    """Positions, branches and prefixes; padding has positions too, which learned ones must have a vector for."""
    size, length = len(rows), shape.length
    last = model.max_positions - 1
    positions = torch.arange(length).clamp(max=last).repeat(size, 1)
    for number, row in enumerate(rows):
        if row.positions is not None:
            positions[number, : len(row.inputs)] = torch.tensor(row.positions)
    batch.positions = positions
    if shape.branched:
        batch.segment_ids = torch.zeros(size, length, dtype=torch.int64)
        batch.shared_lengths = torch.zeros(size, dtype=torch.int64)
        for number, row in enumerate(rows):
            assert row.branches is not None
            batch.segment_ids[number, : len(row.inputs)] = torch.tensor(row.branches)
            batch.shared_lengths[number] = row.shared
    if shape.prefixed:
        batch.prefix_lengths = torch.tensor([row.prefix for row in rows])


def _filled(lengths: list[int], length: int) -> torch.Tensor:
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).float()
