"""Rows of several documents: as many as have room follow each other, kept apart by segments, each from position 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.objectives.objective import Arrays, stack
from data_pipeline.objectives.packing import Documents, ExamplePacker, MakeSample, Sample, TokenizedDocument


class Part(NamedTuple):
    """A document in a row."""

    tokens: np.ndarray
    """(n,) int32."""
    weights: np.ndarray
    """(n,) float32: how much each token counts as a target; the first is none."""


class RowPacker(ExamplePacker):
    """Rows of consecutive documents: a row ends where the next document has no room in it, and at the end of an epoch.
    A document that is longer than a row has one of its own."""

    def __init__(
        self,
        documents: Documents,
        token: int,
        make: MakeSample,
        room: int,
        positions: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """
        Args:
            make: makes the sample of one document.
            room: positions of a row.
            positions: those that documents take, as `Objective.positions`.
        """
        super().__init__(documents, token, make)
        self._room = room
        self._positions = positions

    def next(self, number: int) -> Sample:
        taken = [self._take()]
        left = self._room - self._size(taken[0])
        while (size := self._size(self._document)) <= left and self._document.epoch == taken[0].epoch:
            taken.append(self._take())
            left -= size
        return joined([self._sample(document) for document in taken])

    def _size(self, document: TokenizedDocument) -> int:
        lengths = [len(document.tokens) - 2, *map(len, document.others)]
        return int(self._positions(np.array([lengths]))[0])


def row_starts(positions: np.ndarray, room: int) -> np.ndarray:
    """(rows + 1,) int64: the first document of each row, and the number of all, by the rule of `RowPacker`.

    Args:
        positions: (N,) int64, of each document.
    """
    behind = np.cumsum(positions)
    starts, first = [0], 0
    while first < len(positions):
        before = int(behind[first - 1]) if first else 0
        first = max(first + 1, int(np.searchsorted(behind, before + room, side="right")))
        starts.append(first)
    return np.array(starts, dtype=np.int64)


def joined(samples: Sequence[Sample]) -> Sample:
    """One sample of several documents, each a piece of it with values of its own."""
    if len(samples) == 1:
        return samples[0]
    return Sample(
        np.concatenate([sample.tokens for sample in samples]),
        tuple(piece for sample in samples for piece in sample.pieces),
        values=tuple(value for sample in samples for value in sample.values),
    )


def rows_of(parts: Sequence[Sequence[Part]], length: int, pad: int, *, apart: bool) -> Arrays:
    """Rows of a decoder: every token of a document but the last is read, and the next one predicted from it.

    Args:
        parts: the documents of each row, which together have room in it.
        length: positions of a row.
        pad: the padding token.
        apart: whether documents of a row are kept apart; else there is one in each.
    """
    arrays: Arrays = {
        "inputs": stack([_joined([part.tokens[:-1] for part in row]) for row in parts], length, pad),
        "targets": stack([_joined([part.tokens[1:] for part in row]) for row in parts], length, pad),
        "weights": stack([_joined([part.weights[1:] for part in row]) for row in parts], length, 0, np.float32),
    }
    if apart:
        sizes = [[len(part.tokens) - 1 for part in row] for row in parts]
        segments = [np.repeat(np.arange(len(row), dtype=np.int32), row) for row in sizes]
        places = [_joined([np.arange(size, dtype=np.int32) for size in row]) for row in sizes]
        arrays["segment_ids"] = stack(segments, length, fill=-1)
        arrays["positions"] = stack(places, length)
    return arrays


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
