"""Samples by number, as chunks that travel from a worker to the loader: of a stream or of a finite set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.objectives import Arrays
from data_pipeline.objectives.packing import Origin, Sample
from data_pipeline.sources.readers import BadRecord


class ReadReport(NamedTuple):
    """What was wrong with documents that were read."""

    dropped: dict[str, int] = {}
    """Documents dropped or repaired, by reason."""
    bad: Sequence[BadRecord] = ()
    """Bad records; of a stream at most 1,000 a chunk, of a source tokenised whole as many a block."""
    bad_count: int = 0
    """Bad records, those that are not in `bad` too."""
    records: int = 0
    """Records read, good and bad ones."""


class Chunk(NamedTuple):
    """Some samples of one worker. Arrays, since they travel through a pipe: no shared memory to run out of."""

    arrays: Arrays
    """Rows, C of each."""
    digests: np.ndarray
    """(C,) uint64: ledger terms."""
    states: np.ndarray
    """(C, 6) int64: the group of sources and its lane's state after each sample; (C, 0) where none is needed."""
    met: ReadReport = ReadReport()
    """Since the last chunk."""


class Files(Protocol):
    """The files that a cursor of the samples belongs to."""

    digest: str

    def fingerprints(self) -> str:
        """Of each file, or nothing where they are too many."""
        ...

    def check(self, recorded: dict[str, Any]) -> None:
        """Raise UserError when a cursor's `source` and `files` are of other files."""
        ...


class Samples(Files, Protocol):
    """Everything there is to train on, by sample number. One process's own: it keeps files open."""

    settings: dict[str, Any]
    """What decides the samples besides the files: must be the same when a run goes on."""
    total: int | None
    """Samples in all; None: no end."""
    finite: bool
    """Whether they are a finite set, of which any process makes any sample."""
    immediate: bool
    """Whether samples are made faster than they could be passed on by a worker."""

    def sources(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples each group of sources gives, by its label."""
        ...

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        """What `make` makes its rows of, for a look at where they come from."""
        ...

    def digest_of(self, sample: Sample, k: int) -> int:
        """The ledger's term of sample k, 64 bits."""
        ...

    def origins(self, sample: Sample, k: int) -> list[Origin]:
        """Where each piece of sample k comes from."""
        ...

    def make(self, numbers: Sequence[int]) -> Chunk:
        """The samples of these global numbers. Raises UserError for what cannot be read."""
        ...

    def open(self, cursor: dict[str, Any], first_sample: int, lanes: Sequence[int]) -> None:
        """Go to a cursor, for some lanes. Raises UserError for a cursor of other files or settings."""
        ...

    def skip_to(self, first_sample: int, rank: int, ranks: int) -> None:
        """Go on from a sample without a cursor, which takes as long as making all those before it."""
        ...

    def cursor_lanes(self, lanes: Sequence[int]) -> dict[str, Any]:
        """Where these lanes stand, as a cursor keeps it; before any sample is made."""
        ...

    def close(self) -> None:
        """Close the files. Called before a fork."""
        ...
