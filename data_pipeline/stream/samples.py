"""Samples of raw text as it is read: those of the lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.objectives import Objective
from data_pipeline.objectives.packing import Origin, Sample
from data_pipeline.samples import Chunk, ReadReport
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers.bad_records import VERSION
from data_pipeline.sources.readers.kinds import Survey
from data_pipeline.stream.cursor import open_cursor
from data_pipeline.stream.lanes import Lanes, LaneState
from data_pipeline.tokenizer import Tokenizer


class StreamSamples:
    """Samples of raw text: the lanes, with an objective."""

    finite: bool = False
    total: int | None = None
    immediate: bool = False

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        objective: Objective,
        seed: int,
        surveys: Sequence[Survey] | None = None,
    ) -> None:
        """Lists the files, unless that has been done. Raises UserError as `Corpus` and `Lanes` do, or for sources that
        lack the targets."""
        objective.require(config.sources, "data.sources")
        self.corpus = Corpus.training(config, surveys)
        self.lanes = Lanes(self.corpus, tokenizer, config, objective, seed)
        self._objective = objective
        self._counts = (0, 0)
        self.digest = self.corpus.digest
        self.settings = {
            "lanes": config.lanes,
            "sequence_length": config.sequence_length,
            "shuffle_buffer": config.shuffle_buffer,
            "span_bytes": config.span_bytes,
            "holdout": config.holdout,
            "seed": seed,
            "tokenizer": tokenizer.digest[:16],
            "reading": VERSION,
        }

    def make(self, numbers: Sequence[int]) -> Chunk:
        made: list[Sample] = []
        states: list[tuple[int, ...]] = []
        for k in numbers:
            sample, group, state = self.lanes.next(k)
            made.append(sample)
            states.append((group, *state))
        digests = np.array([sample.digest(k) for k, sample in zip(numbers, made, strict=True)], dtype=np.uint64)
        arrays = self._objective.arrays(made, numbers)
        places = np.array(states, dtype=np.int64).reshape(-1, 6)
        return Chunk(arrays, digests, places, self._met())

    def _met(self) -> ReadReport:
        """What reading met since the last call."""
        dropped = dict(self.corpus.dropped)
        self.corpus.dropped.clear()
        before, self._counts = self._counts, (self.corpus.bad_count, self.corpus.records_read)
        bad_count, records = (now - then for now, then in zip(self._counts, before, strict=True))
        return ReadReport(dropped, self.corpus.take_bad(), bad_count, records)

    def sources(self, samples: int) -> dict[str, int]:
        mixture = self.lanes.mixture
        return dict(zip(mixture.labels, mixture.counts(samples), strict=True))

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        return [self.lanes.next(k)[0] for k in numbers]

    def digest_of(self, sample: Sample, k: int) -> int:
        return sample.digest(k)

    def origins(self, sample: Sample, k: int) -> list[Origin]:
        files = self.corpus.files
        return [Origin(files[piece.file].path, piece.position, piece.start - 1) for piece in sample.pieces]

    def open(self, cursor: dict[str, Any], first_sample: int, lanes: Sequence[int]) -> None:
        self.corpus.read_as(cursor["settings"].get("reading", 1))
        if "reading" not in cursor["settings"]:
            # A run that began before there were versions goes on as it began.
            del self.settings["reading"]
        found = open_cursor(cursor, self, self.settings, first_sample, lanes)
        self.lanes.states = {
            (lane, group): LaneState(*state) for lane, states in found.items() for group, *state in states
        }

    def skip_to(self, first_sample: int, rank: int, ranks: int) -> None:
        for k in range(rank, first_sample, ranks):
            self.lanes.next(k)
        self.lanes.close()

    def cursor_lanes(self, lanes: Sequence[int]) -> dict[str, Any]:
        kept: dict[str, Any] = {str(lane): [] for lane in lanes}
        for (lane, group), state in sorted(self.lanes.states.items()):
            if str(lane) in kept:
                kept[str(lane)].append([group, *state])
        return kept

    def fingerprints(self) -> str:
        return self.corpus.fingerprints()

    def check(self, recorded: dict[str, Any]) -> None:
        """Refuse a cursor of other files, as `Corpus.check` does."""
        self.corpus.check(recorded)

    def close(self) -> None:
        self.lanes.close()
