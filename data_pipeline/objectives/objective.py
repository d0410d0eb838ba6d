"""What every objective does: cut documents into samples, and turn samples into the arrays of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipeline.objectives.packing import OpenPacker, Sample
from data_pipeline.tokenizer.frame import Frame

Arrays = dict[str, np.ndarray]
"""Rows of a `Batch` by field name, in integer or float types as small as they may be. `tokens` (C, T + 1) stands for
`inputs` and `targets`, which are its first and last T columns; without `weights` every target counts."""


class Objective(ABC):
    """How documents become samples, and samples k become rows: a pure function of (sample, seed, k)."""

    roles: tuple[str, ...] = ()
    """Tokens that the tokenizer must have, besides eos."""
    unit: Literal["window", "sentences", "pair"]
    """What a sample is cut from: the packed stream, one or two documents, or a document with a target."""
    length: int
    """Tokens of a sample: exactly for windows, at most for sentences; 0 where it is as long as it is."""
    overlap: int = 0
    """Tokens that a window shares with the next one."""
    short_rate: float = 0.0
    """How often a pair of sentences is made shorter than it could be."""
    eos: int | None = None
    """The token behind every document that is tokenised ahead; of no use to windows, of which it is a part."""
    frame: Frame | None = None
    """The special tokens of documents in the stream; None: a token ends each, as in a run from scratch."""
    plain: bool = False
    """Whether a row is nothing but its window."""

    @abstractmethod
    def packer(self) -> OpenPacker:
        """Cuts a lane's documents into samples."""

    @abstractmethod
    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        """The rows of samples with global numbers `numbers`. A window shorter than `length` is filled up."""

    @property
    @abstractmethod
    def targets_per_sample(self) -> int:
        """Most target tokens of a sample."""


def stack(rows: Sequence[np.ndarray], length: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
    """Rows of at most `length` elements as one (C, length) array, filled up at the end."""
    out: np.ndarray = np.full((len(rows), length), fill, dtype=dtype)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def decoder_inputs(targets: np.ndarray, start: int) -> np.ndarray:
    """What a decoder reads to give (C, T) targets: the token `start`, then each target but the last."""
    return np.concatenate([np.full((len(targets), 1), start, targets.dtype), targets[:, :-1]], axis=1)


def filled(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """(C, length) float32: 1 where a row has elements, 0 where it is filled up."""
    sizes = np.array([len(row) for row in rows])
    return (np.arange(length) < sizes[:, None]).astype(np.float32)
