"""Lanes: independent endless streams of samples, each of which can start anywhere in constant time."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import shuffled
from data_pipeline.config import DataConfig
from data_pipeline.objectives import Objective
from data_pipeline.objectives.packing import Place, Sample
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span
from data_pipeline.stream.documents import LaneDocuments
from data_pipeline.stream.mixture import Mixture
from data_pipeline.tokenizer import Tokenizer


class TooFewSpansError(UserError):
    """Not every lane would get a span."""


class LaneState(NamedTuple):
    """All that a lane needs to go on, as small integers."""

    epoch: int = 0
    """Times the lane has gone through its spans."""
    span: int = 0
    """Index into the lane's spans in this epoch's order."""
    position: int = -1
    """Document (byte, row, example) at which the current shuffle block begins; -1 for the span's first."""
    token: int = 0
    """Token of that document at which the block begins."""
    taken: int = 0
    """Samples taken from the lane so far; the remainder by the block's size is the place in the block."""


def deal_spans(spans: list[Span], lanes: int, *key: int, of: str = "the training data") -> list[list[int]]:
    """Indices of the spans of each lane: in seeded random order, each span to the lane with the fewest bytes so far.

    Raises:
        TooFewSpansError: fewer spans than lanes; `of` names their source.
    """
    if len(spans) < lanes:
        raise TooFewSpansError(
            f"data.lanes ({lanes}) exceeds the {len(spans)} spans of {of}; set data.lanes to {len(spans)} or less,"
            f" or data.order=finite, which needs no lanes"
        )
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    load = [(0, lane) for lane in range(lanes)]
    for index in shuffled(list(range(len(spans))), *key):
        size, lane = load[0]
        dealt[lane].append(index)
        heapq.heapreplace(load, (size + spans[index].size, lane))
    return dealt


class LaneSource:
    """What one group of sources gives to one lane: samples in block-shuffled order, each with the state after it."""

    def __init__(
        self, documents: LaneDocuments, objective: Objective, key: tuple[int, ...], block: int, state: LaneState
    ) -> None:
        """`key`: seed, lane and group; `block`: samples that are shuffled among each other."""
        self._block_size = block
        self._key = key
        self._state = state
        documents.seek(Place(*state[:4]))
        self._packer = objective.packer()(documents, state.token, key)
        self._block: list[Sample] = []
        self._order: list[int] = []

    def next(self) -> tuple[Sample, LaneState]:
        """The next sample and the state after it."""
        block, place = divmod(self._state.taken, self._block_size)
        if not self._block:
            first = block * self._block_size
            self._block = [self._packer.next(first + i) for i in range(self._block_size)]
            self._order = shuffled(list(range(self._block_size)), *self._key, block)
        sample = self._block[self._order[place]]
        self._state = LaneState(*self._state[:4], self._state.taken + 1)
        if place + 1 == self._block_size:
            self._state = LaneState(*self._packer.place, self._state.taken)
            self._block = []
        return sample, self._state


class Lanes:
    """The lanes of a corpus in this process. A strand is opened when a sample first asks for it."""

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, objective: Objective, seed: int
    ) -> None:
        """Deals the spans of every group of sources to the lanes.

        Raises:
            TooFewSpansError: fewer spans than `config.lanes` in a group.
            UserError: weights that make no sense, or sources without the targets that the objective needs.
        """
        self.mixture = Mixture(config, corpus.source_bytes(), objective.targets_per_sample, seed)
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._objective = objective
        self._lanes = config.lanes
        self._block = max(1, config.shuffle_buffer // config.lanes)
        self._seed = seed
        self._dealt = [self._deal(group) for group in range(self.mixture.groups)]
        self._open: dict[tuple[int, int], LaneSource] = {}
        self.states: dict[tuple[int, int], LaneState] = {}
        """The state of each (lane, group) that does not start at its beginning; up to date for those in use."""

    def next(self, k: int) -> tuple[Sample, int, LaneState]:
        """Sample k, which must be the next one of its lane; its group of sources; and that group's state after it.

        Raises:
            UserError: unreadable or too little text.
        """
        lane, group = k % self._lanes, self.mixture.group(k)
        if (lane, group) not in self._open:
            key = (self._seed, lane, group)
            label = self.mixture.labels[group]
            documents = LaneDocuments(
                self._corpus, self._tokenizer, self._objective, self._dealt[group][lane], *key, label=label
            )
            state = self.states.get((lane, group), LaneState())
            self._open[lane, group] = LaneSource(documents, self._objective, key, self._block, state)
        sample, self.states[lane, group] = self._open[lane, group].next()
        return sample, group, self.states[lane, group]

    def close(self) -> None:
        """Close all files; `states` stay, and `next` opens the lanes again from them."""
        self._open.clear()
        self._corpus.close()

    def _deal(self, group: int) -> list[list[Span]]:
        groups = self.mixture.group_of_source
        files = self._corpus.files
        spans = [span for span in self._corpus.side(held_out=False) if groups[files[span.file].source] == group]
        of = "the training data" if self.mixture.groups == 1 else f"source {self.mixture.labels[group]}"
        return [[spans[i] for i in lane] for lane in deal_spans(spans, self._lanes, self._seed, group, of=of)]
