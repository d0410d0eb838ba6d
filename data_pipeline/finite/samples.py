"""Samples of a finite set of tokenised documents: every epoch a random order of all of them, each exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import uniforms
from data_pipeline.batch import fill_of
from data_pipeline.finite.permutation import Permutation
from data_pipeline.finite.shards import Shards, are_known
from data_pipeline.finite.views import Chunks, Examples, Windows, end_tokens
from data_pipeline.objectives import Arrays, Objective
from data_pipeline.objectives.packing import Origin, Piece, Sample
from data_pipeline.objectives.rows import joined, row_starts
from data_pipeline.samples import Chunk
from data_pipeline.stream.cursor import open_cursor
from data_pipeline.stream.mixture import Mixture

LOOK_AHEAD = 4096
"""Windows whose places are worked out at a time."""


class View(Protocol):
    """The samples of one group of sources, by index."""

    def __len__(self) -> int: ...

    def sample(self, index: int, number: int) -> Sample:
        """A sample; `number` is its global number, for what is drawn at random."""
        ...


class _Plan(NamedTuple):
    """Where windows come from, a row for each sample."""

    numbers: np.ndarray
    """(N,) int64, increasing: global sample numbers."""
    groups: np.ndarray
    indices: np.ndarray
    """(N,) int64: number of the window in the group's view."""
    heads: np.ndarray
    """(N, 3) int64: sample number, first document, and the first token in it."""


class IndexedSamples:
    """Samples by number alone: of group g, number n is permutation(seed, g, epoch)[n mod N]. Nothing to remember."""

    finite: bool = True

    def __init__(
        self,
        groups: Sequence[Shards],
        mixture: Mixture,
        objective: Objective,
        seed: int,
        vocab_size: int,
        epochs: float | None = None,
    ) -> None:
        """
        Args:
            groups: the documents of each group of the mixture.
            mixture: which group gives which sample.
            objective: what is made of the documents.
            seed: decides the order.
            vocab_size: what every token must be below.
            epochs: after so many passes there are only samples of weight 0; None: no end.

        Raises:
            UserError: a group that does not make one sample.
        """
        self._groups = groups
        self._vocab_size = vocab_size
        self._mixture = mixture
        self._objective = objective
        self._seed = seed
        self._views = [make_view(shards, objective, seed) for shards in groups]
        for label, view in zip(mixture.labels, self._views, strict=True):
            if len(view) == 0:
                raise UserError(f"source {label} of data.sources holds no sample; add documents")
        self.per_epoch = sum(len(view) for view in self._views)
        """Samples of one pass over all groups."""
        self.total: int | None = None if epochs is None else round(epochs * self.per_epoch)
        """Samples of the whole run; None: no end."""
        self._order = lru_cache(maxsize=4 * len(groups))(self._permutation)
        self.digest = xxhash.xxh3_128_hexdigest("".join(shards.digest for shards in groups).encode())
        self.settings = {"length": objective.length, "overlap": objective.overlap, "seed": seed}
        self.immediate = objective.plain
        self._plan = _Plan(*(np.zeros(0, dtype=np.int64) for _ in _Plan._fields))

    def make(self, numbers: Sequence[int]) -> Chunk:
        real = [k for k in numbers if self.total is None or k < self.total]
        if real:
            arrays, digests = self._plain_rows(real) if self._objective.plain else self._rows(real)
        else:
            # A sample lends its shape to rows that are all fill.
            arrays, digests = self._objective.arrays([self._views[0].sample(0, 0)], [0]), np.empty(0, np.uint64)
        missing = len(numbers) - len(real)
        if missing:
            arrays = fill_rows(arrays, len(real), missing)
            digests = np.concatenate([digests, np.zeros(missing, dtype=np.uint64)])
        return Chunk(arrays, digests, np.empty((len(numbers), 0), dtype=np.int64))

    def _require_known(self, samples: Sequence[Sample], numbers: Sequence[int]) -> None:
        """Raise UserError for an id that is not in the vocabulary, before anything looks it up."""
        for sample, k in zip(samples, numbers, strict=True):
            if not are_known(sample.tokens, self._vocab_size):
                shards = self._groups[self._mixture.place(k)[0]]
                # The target of a text has no piece of its own.
                step = 1 + int(self._objective.config.stored.target)
                for document in [piece.document + i for piece in sample.pieces for i in range(step)]:
                    shards.known(document, self._vocab_size)

    def sources(self, samples: int) -> dict[str, int]:
        return dict(zip(self._mixture.labels, self._mixture.counts(samples), strict=True))

    def each(self) -> Iterator[Sample]:
        """Every sample once, in the order of the files."""
        for view in self._views:
            yield from (view.sample(index, index) for index in range(len(view)))

    def distinct(self, samples: int) -> list[int]:
        """Numbers, among the first `samples`, one for each sample that there is among them."""
        limit = samples if self.total is None else min(samples, self.total)
        if self._mixture.groups == 1:
            return list(range(min(limit, self.per_epoch)))
        found: dict[tuple[int, int], int] = {}
        for first in range(0, limit, LOOK_AHEAD):
            numbers = range(first, min(first + LOOK_AHEAD, limit))
            groups, indices = self.places(numbers)
            for number, *place in zip(numbers, groups.tolist(), indices.tolist(), strict=True):
                found.setdefault((place[0], place[1]), number)
        return list(found.values())

    def digest_of(self, sample: Sample, k: int) -> int:
        return sample_digest(sample, k)

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        groups, indices = self.places(numbers)
        places = zip(numbers, groups.tolist(), indices.tolist(), strict=True)
        return [self._views[group].sample(index, k) for k, group, index in places]

    def _rows(self, numbers: Sequence[int]) -> tuple[Arrays, np.ndarray]:
        samples = self.samples(numbers)
        self._require_known(samples, numbers)
        digests = [sample_digest(sample, k) for sample, k in zip(samples, numbers, strict=True)]
        # Some windows are short, so that all must say what counts: chunks of several workers are put together.
        return with_weights(self._objective.arrays(samples, numbers)), np.array(digests, dtype=np.uint64)

    def _plain_rows(self, numbers: Sequence[int]) -> tuple[Arrays, np.ndarray]:
        """What `_rows` gives for windows that nothing is done to, many times as fast."""
        plan = self._planned(np.asarray(numbers, dtype=np.int64))
        present = np.unique(plan.groups).tolist()
        windows = [view.windows for view in self._views]  # type: ignore[attr-defined]
        if len(present) == 1:
            tokens, sizes = windows[present[0]].gather(plan.indices)
        else:
            tokens = np.empty((len(numbers), self._objective.length), dtype=np.int64)
            sizes = np.empty(len(numbers), dtype=np.int64)
            for group in present:
                rows = np.flatnonzero(plan.groups == group)
                tokens[rows], sizes[rows] = windows[group].gather(plan.indices[rows])
        if not are_known(tokens, self._vocab_size):
            self._require_known(self.samples(numbers), numbers)
        arrays: Arrays = {"tokens": tokens}
        known: Iterable[Any] = tokens
        if sizes.min() < self._objective.length:
            arrays["weights"] = (np.arange(1, tokens.shape[1]) < sizes[:, None]).astype(np.float32)
            known = (row[:size] for row, size in zip(tokens, sizes.tolist(), strict=True))
        # As in `sample_digest`.
        hashed = xxhash.xxh3_64_intdigest
        digests = [hashed(row, hashed(head)) for row, head in zip(known, plan.heads, strict=True)]
        return arrays, np.array(digests, dtype=np.uint64)

    def _planned(self, numbers: np.ndarray) -> _Plan:
        """Where samples come from, by their numbers; worked out for many to come, which costs little more."""
        rows = np.searchsorted(self._plan.numbers, numbers)
        if rows[-1] >= len(self._plan.numbers) or not np.array_equal(self._plan.numbers[rows], numbers):
            step = int(numbers[1] - numbers[0]) if len(numbers) > 1 else 1
            count = max(len(numbers), min(LOOK_AHEAD, self.per_epoch))
            self._plan = self._make_plan(numbers[0] + step * np.arange(count, dtype=np.int64))
            rows = np.arange(len(numbers))
        return _Plan(*(column[rows] for column in self._plan))

    def _make_plan(self, numbers: np.ndarray) -> _Plan:
        groups, indices = self.places(numbers.tolist())
        heads = np.empty((len(numbers), 3), dtype="<i8")
        heads[:, 0] = numbers
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            windows = self._views[group].windows  # type: ignore[attr-defined]
            heads[rows, 1], heads[rows, 2] = windows.first_documents(indices[rows])
        return _Plan(numbers, groups, indices, heads)

    @property
    def sizes(self) -> list[int]:
        """Samples of an epoch that each group has."""
        return [len(view) for view in self._views]

    def window(self, group: int, index: int) -> Sample:
        """The sample of that index in a group's files, without what is drawn at random for it."""
        sample = self._views[group].sample(index, 0)
        if self._objective.unit != "sentences":
            return sample
        return Sample(sample.tokens[: sample.pieces[0].length], sample.pieces[:1])

    def origins(self, sample: Sample, k: int) -> list[Origin]:
        shards = self._groups[self._mixture.place(k)[0]]
        return [Origin(*shards.origin(piece.document), piece.start) for piece in sample.pieces]

    def open(self, cursor: dict[str, Any], first_sample: int, lanes: Sequence[int]) -> None:
        open_cursor(cursor, self, self.settings, first_sample, [])

    def skip_to(self, first_sample: int, rank: int, ranks: int) -> None:
        pass

    def cursor_lanes(self, lanes: Sequence[int]) -> dict[str, Any]:
        return {}

    def fingerprints(self) -> str:
        return ""

    def check(self, recorded: dict[str, Any]) -> None:
        """Raise UserError for a cursor of other documents."""
        if recorded["source"] != self.digest:
            raise UserError(
                f"the tokens of data.sources changed since the run was saved (digest {recorded['source'][:12]}, now"
                f" {self.digest[:12]}); restore what the run was saved with, or start a new run"
            )

    def close(self) -> None:
        pass

    def places(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The group of each sample, and its index in the group's view."""
        if self._mixture.groups == 1:
            groups, places = np.zeros(len(numbers), dtype=np.int64), np.array(numbers, dtype=np.int64)
        else:
            groups, places = np.array([self._mixture.place(k) for k in numbers], dtype=np.int64).reshape(-1, 2).T
        sizes = np.array([len(view) for view in self._views])[groups]
        indices = np.empty_like(places)
        for group, epoch in set(zip(groups.tolist(), (places // sizes).tolist(), strict=True)):
            rows = (groups == group) & (places // sizes == epoch)
            indices[rows] = self._order(group, epoch)(places[rows] % sizes[rows])
        return groups, indices

    def _permutation(self, group: int, epoch: int) -> Permutation:
        return Permutation(len(self._views[group]), self._seed, group, epoch)


def sample_digest(sample: Sample, k: int) -> int:
    """The ledger's term: xxh3 of the tokens and values (int64) under a seed made of k, the first document and its first
    token."""
    first = sample.pieces[0]
    seed = xxhash.xxh3_64_intdigest(np.array([k, first.document, first.start], dtype="<i8").data)
    tokens = np.concatenate([sample.tokens, *sample.values]) if sample.values else sample.tokens
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens, dtype="<i8").data, seed)


class WindowView:
    """Windows of the token stream."""

    def __init__(self, shards: Shards, objective: Objective) -> None:
        self.shards = shards
        self.windows = Windows(shards, objective.length, objective.overlap)

    def __len__(self) -> int:
        return len(self.windows)

    def sample(self, index: int, number: int) -> Sample:
        row = np.array([index])
        tokens, lengths = self.windows.gather(row)
        length = int(lengths[0])
        held = self.windows.documents(row)
        sizes = np.bincount(self.windows.segments(row)[0, :length]).tolist()
        documents = self._documents(int(held.first[0]), int(held.last[0]), len(sizes))
        starts = [int(held.offset[0]), *([0] * (len(sizes) - 1))]
        pieces = [
            _piece(self.shards, document, start, size)
            for document, start, size in zip(documents, starts, sizes, strict=True)
        ]
        return Sample(_narrow(tokens[0, :length]), tuple(pieces))

    def _documents(self, first: int, last: int, count: int) -> list[int]:
        """The documents from first to last that have tokens."""
        between = [d for d in range(first + 1, last) if len(self.shards.document(d))] if count > 2 else []
        return [first, *between, last] if count > 1 else [first]


class SentenceView:
    """Chunks of half a sample, each followed by the next one of its document or by one of another document (the finite
    form of `packing.SentencePairPacker`): every chunk is the first part of one sample an epoch."""

    def __init__(self, shards: Shards, objective: Objective, seed: int) -> None:
        self.shards = shards
        self.room = objective.length
        self.chunks = Chunks(shards, max(1, objective.length // 2), objective.eos)
        self._short_rate = objective.short_rate
        self._seed = seed

    def __len__(self) -> int:
        return len(self.chunks)

    def sample(self, index: int, number: int) -> Sample:
        first = self.chunks.get(index)
        swap, which, shorter, size = uniforms(4, "pair", self._seed, number)
        second, label = self.chunks.get(min(index + 1, len(self) - 1)), 0
        if swap < 0.5 or second.document != first.document or index + 1 == len(self):
            second, label = self.chunks.get(int(which * len(self))), 1
        room = self.room - len(first.tokens)
        if shorter < self._short_rate:
            room = 1 + int(size * room)
        part = second.tokens[:room]
        pieces = [_piece(self.shards, first.document, first.offset, len(first.tokens))]
        if second.document == first.document and label == 1:
            return Sample(_narrow(first.tokens), tuple(pieces), len(first.tokens), -1)
        pieces.append(_piece(self.shards, second.document, second.offset, len(part)))
        tokens = _narrow(np.concatenate([first.tokens, part]))
        return Sample(tokens, tuple(pieces), len(first.tokens), label)


class DocumentView:
    """Documents with what is stored of them, which are consecutive ones, without the token that ends them."""

    def __init__(self, shards: Shards, objective: Objective) -> None:
        self.shards = shards
        self.examples = Examples(shards, per_example=1 + objective.config.stored.arrays)
        self._ends = end_tokens(shards, objective.eos)
        self._objective = objective

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self) -> np.ndarray:
        """(documents, arrays) int64: elements of all that is stored of each."""
        each = [
            np.diff(dataset.starts(np.arange(dataset.document_count + 1))) - ends
            for dataset, ends in zip(self.shards.datasets, self._ends, strict=True)
        ]
        return np.concatenate(each).reshape(len(self), self.examples.per_example)

    def sample(self, index: int, number: int) -> Sample:
        stored = self._objective.config.stored
        where = _piece(self.shards, (1 + stored.arrays) * index, 0, 0)
        ends = self._ends[where.file]
        text, *others = (_narrow(part[: len(part) - ends]) for part in self.examples.get(index))
        return self._objective.sample(text, others, lambda size: (where._replace(length=size),))


class RowView:
    """Rows of consecutive documents: the finite form of `rows.RowPacker`."""

    def __init__(self, shards: Shards, objective: Objective) -> None:
        self._documents = DocumentView(shards, objective)
        self._starts = row_starts(objective.positions(self._documents.lengths()), objective.room)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def sample(self, index: int, number: int) -> Sample:
        documents = range(int(self._starts[index]), int(self._starts[index + 1]))
        return joined([self._documents.sample(document, number) for document in documents])


def make_view(shards: Shards, objective: Objective, seed: int) -> View:
    """The samples that an objective makes of some documents.

    Raises:
        UserError: the objective needs more of a document than its text, and these have no more.
    """
    if objective.unit == "window":
        return WindowView(shards, objective)
    if objective.unit == "sentences":
        return SentenceView(shards, objective, seed)
    try:
        return RowView(shards, objective) if objective.room else DocumentView(shards, objective)
    except ValueError as error:
        raise UserError(f"data.sources hold no pairs of texts: {error}; give sources with a target_field") from None


def _piece(shards: Shards, document: int, start: int, length: int) -> Piece:
    where = shards.locate(np.array(document))
    return Piece(document, int(where.shard), int(where.local), start, length)


def _narrow(tokens: np.ndarray) -> np.ndarray:
    """Ids as int32; those that it cannot hold stay as they are, since they would be others, and are refused later."""
    narrow = tokens.astype(np.int32)
    return narrow if tokens.itemsize <= 4 or np.array_equal(narrow, tokens) else tokens.astype(np.int64)


def fill_rows(arrays: Arrays, kept: int, missing: int) -> Arrays:
    """The first `kept` rows, and `missing` more that count nothing."""
    weighted = with_weights(arrays) if missing else arrays
    return {name: _fill(name, rows[:kept], missing) for name, rows in weighted.items()}


def with_weights(arrays: Arrays) -> Arrays:
    """The rows, with weights where all targets count."""
    if "weights" in arrays:
        return arrays
    targets = arrays["tokens"][:, 1:]
    return {**arrays, "weights": np.ones(targets.shape, dtype=np.float32)}


def _fill(name: str, rows: np.ndarray, missing: int) -> np.ndarray:
    """The rows, and `missing` more that count nothing."""
    filled = np.full((missing, *rows.shape[1:]), fill_of(name, rows), dtype=rows.dtype)
    return np.concatenate([rows, filled])
