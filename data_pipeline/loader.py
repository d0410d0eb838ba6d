"""Batches of the training stream for one data-parallel rank, from worker processes or in process."""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch, make_batch
from data_pipeline.config import DataConfig
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.open_samples import open_samples
from data_pipeline.samples import Chunk, ReadReport, Samples
from data_pipeline.sources.readers import BadRecord
from data_pipeline.sources.readers.bad_records import DAMAGED
from data_pipeline.sources.readers.kinds import Survey
from data_pipeline.stream.cursor import LedgerSum, make_cursor, require_divisible
from data_pipeline.tokenizer import Tokenizer

CHUNK_BYTES = 1 << 22
"""Most bytes that a worker sends at once."""

NOTED_RECORDS = 10_000
"""Most bad records that wait to be written down."""


class _Shard(IterableDataset[Chunk | Exception]):
    """What one worker does: the chunks of its own lanes, for ever. A UserError is sent as it is, and ends it."""

    def __init__(self, samples: Samples, first: int, stride: int, chunk: int) -> None:
        self.samples = samples
        self.first = first
        self.stride = stride
        self.chunk = chunk

    def __iter__(self) -> Iterator[Chunk | Exception]:
        worker = get_worker_info()
        assert worker is not None
        k, stride = self.first + worker.id * self.stride, worker.num_workers * self.stride
        try:
            while True:
                yield self.samples.make(range(k, k + self.chunk * stride, stride))
                k += self.chunk * stride
        except UserError as error:  # DataLoader would wrap it and change its message
            yield error


class TrainLoader:
    """The samples k = dp_rank (mod dp_size) of the global stream, in order.

    The stream is a function of the config, the tokenizer and the seed alone: rank counts, workers and resumes change
    who reads a sample, never the sample. Lane k mod `config.lanes` gives sample k.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        objective: ObjectiveConfig = CausalObjective(),  # noqa: B008
        seed: int,
        dp_rank: int,
        dp_size: int,
        first_sample: int = 0,
        cursor: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        epochs: float | None = None,
        pin_memory: bool = False,
        surveys: Sequence[Survey] | None = None,
    ) -> None:
        """Opens the files; reading starts with the first `take`.

        Args:
            config: the data section.
            tokenizer: has the roles that the objective needs.
            objective: what is made of the documents.
            seed: decides the order, and what an objective draws.
            dp_rank: this rank's number.
            dp_size: data-parallel size; must divide `config.lanes`, unless the samples are a finite set.
            first_sample: global number of the first sample that any rank reads.
            cursor: a merged cursor at `first_sample`, to start there at once. Without one the samples
                before `first_sample` are produced and thrown away, which takes as long as training on them waited.
            cache: where raw text that is read as a finite set is kept as tokens; see `open_samples`.
            epochs: passes over a finite set after which only samples of weight 0 follow.
            pin_memory: put batches into page-locked memory, for copies to a GPU.
            surveys: `survey_sources` of the config, where one rank has done that for all.

        Raises:
            UserError: lanes that dp_size does not divide or that exceed the spans, unusable files, or a cursor of
                other files or settings.
        """
        self._config = config
        self._rank = dp_rank
        self._dp_size = dp_size
        self._pin = pin_memory
        self.samples: Samples = open_samples(
            config, tokenizer, objective, seed=seed, cache=cache, epochs=epochs, surveys=surveys
        )
        if not self.samples.finite:
            require_divisible(config.lanes, dp_size)
        self._next = first_sample
        own = range(dp_rank, config.lanes, dp_size)
        divisors = (n for n in range(1, min(config.workers, len(own)) + 1) if len(own) % n == 0)
        self.effective_workers = config.workers if self.samples.finite else max(divisors, default=0)
        """Worker processes: the largest divisor of this rank's lanes not above `config.workers`, or just that many
        where samples are read by number; 0: in process, as reading ready-made windows always is."""
        if self.samples.immediate:
            self.effective_workers = 0
        self.dropped: Counter[str] = Counter()
        """Documents dropped or repaired so far by this rank's reading, by reason; read-ahead and repeats count too."""
        self.bad: list[BadRecord] = []
        """Bad records that this rank's reading met since `take_bad` was called, at most 10,000 and damaged files."""
        self.bad_count = 0
        """Bad records that this rank has met, those too that `bad` had no room for; what is read twice counts twice."""
        self.records = 0
        """Records that this rank has read, good and bad ones; what is read twice counts twice."""
        self.seconds_waited = 0.0
        """Time that `take` spent waiting for samples."""
        if cursor is not None:
            self.samples.open(cursor, first_sample, own)
        else:
            self.samples.skip_to(first_sample, dp_rank, dp_size)
        self._lanes = {
            lane: {group: state for group, *state in held} for lane, held in self.samples.cursor_lanes(own).items()
        }
        self.annotate: Callable[[Batch], Batch] = _unchanged
        """Adds to each batch what is known of its samples besides."""
        self._chunks: Iterator[Chunk | Exception] | None = None
        self._round: Chunk | None = None
        self._used = 0

    def take(self, count: int) -> tuple[Batch, LedgerSum]:
        """This rank's next `count` samples in order of k, and the sum of their ledger terms modulo 2^64.

        Raises:
            UserError: what a reader found wrong, here or in a worker.
            RuntimeError: a worker died.
        """
        start = time.perf_counter()
        numbers = np.arange(count, dtype=np.int64) * self._dp_size + self._first_own()
        chunk = self._collect(count) if self.effective_workers else self._make(numbers)
        self.seconds_waited += time.perf_counter() - start
        if chunk.states.shape[1]:
            for k, (group, *state) in zip(numbers.tolist(), chunk.states.tolist(), strict=True):
                self._lanes[str(k % self._config.lanes)][group] = state
        self._next += count * self._dp_size
        if self.samples.total is not None:
            numbers = np.where(numbers < self.samples.total, numbers, -1)
        batch = self.annotate(make_batch(chunk.arrays, numbers))
        return (batch.map(torch.Tensor.pin_memory) if self._pin else batch), int(chunk.digests.sum(dtype=np.uint64))

    def cursor(self) -> dict[str, Any]:
        """Where this rank's lanes stand after the last `take`, as JSON; `merge_cursors` joins those of all ranks."""
        lanes = {lane: [[group, *state] for group, state in sorted(held.items())] for lane, held in self._lanes.items()}
        return make_cursor(self.samples, self.samples.settings, self._next, lanes)

    def take_bad(self) -> list[BadRecord]:
        """Bad records that this rank's reading met since the last call."""
        taken, self.bad = self.bad, []
        return taken

    def note(self, met: ReadReport) -> None:
        """Add what was wrong with documents to what this rank's reading met."""
        self.dropped.update(met.dropped)
        room = max(0, NOTED_RECORDS - len(self.bad))
        self.bad += [*met.bad[:room], *(record for record in met.bad[room:] if record.reason == DAMAGED)]
        self.bad_count += met.bad_count
        self.records += met.records

    def close(self) -> None:
        """Stop the workers and close the files."""
        self._chunks = None
        self.samples.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_own(self) -> int:
        """The next sample number that is this rank's."""
        return self._next + (self._rank - self._next) % self._dp_size

    def _make(self, numbers: np.ndarray) -> Chunk:
        return self._noted(self.samples.make(numbers.tolist()))

    def _noted(self, chunk: Chunk) -> Chunk:
        self.note(chunk.met)
        return chunk

    def _start(self, count: int) -> Iterator[Chunk | Exception]:
        """Start the workers; chunks are sized for steps of `count` samples."""
        workers = self.effective_workers
        fits = max(1, CHUNK_BYTES // (8 * self._config.sequence_length))
        size = min(-(-count // workers), fits)
        loader = DataLoader(
            _Shard(self.samples, self._first_own(), self._dp_size, size),
            batch_size=None,
            num_workers=workers,
            # Newer Pythons have another default, with which each worker would import torch and open the files again.
            multiprocessing_context="fork",
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_the_parent,
            prefetch_factor=max(1, -(-self._config.prefetch * count // (size * workers))),
        )
        # A worker that looks for garbage among what it has from its parent would write to every page of that, which
        # from then on takes memory of its own.
        gc.freeze()
        try:
            return iter(loader)
        finally:
            gc.unfreeze()

    def _collect(self, count: int) -> Chunk:
        """The next `count` samples from the workers."""
        if self._chunks is None:
            self._chunks = self._start(count)
        parts: list[Chunk] = []
        while count:
            if self._round is None or self._used == len(self._round.digests):
                self._round, self._used = self._next_round(), 0
            end = min(self._used + count, len(self._round.digests))
            parts.append(_rows(self._round, slice(self._used, end)))
            count -= end - self._used
            self._used = end
        return parts[0] if len(parts) == 1 else _join(parts, np.concatenate)

    def _next_round(self) -> Chunk:
        """One chunk of each worker, interleaved to the order of k: worker w of W has samples w, w + W, ..."""
        assert self._chunks is not None
        chunks: list[Chunk] = []
        for _ in range(self.effective_workers):
            chunk = next(self._chunks)
            if isinstance(chunk, Exception):
                self.close()
                raise chunk
            chunks.append(self._noted(chunk))
        return _join(chunks, _interleave)


def _rows(chunk: Chunk, rows: slice) -> Chunk:
    arrays = {name: array[rows] for name, array in chunk.arrays.items()}
    return Chunk(arrays, chunk.digests[rows], chunk.states[rows])


def _interleave(arrays: list[np.ndarray]) -> np.ndarray:
    """The first rows of all, then the second rows of all, and so on."""
    return np.stack(arrays, axis=1).reshape(len(arrays) * len(arrays[0]), *arrays[0].shape[1:])


def _join(chunks: list[Chunk], join: Callable[[list[np.ndarray]], np.ndarray]) -> Chunk:
    """One chunk of the rows of several."""
    arrays = {name: join([chunk.arrays[name] for chunk in chunks]) for name in chunks[0].arrays}
    digests, states = (join([getattr(chunk, name) for chunk in chunks]) for name in ("digests", "states"))
    return Chunk(arrays, digests, states)


def _unchanged(batch: Batch) -> Batch:
    return batch


def _as_is(chunk: Chunk | Exception) -> Chunk | Exception:
    return chunk


def _leave_signals_to_the_parent(worker: int) -> None:
    # A scheduler signals the whole process group; the parent still needs its workers to finish its step and save.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
