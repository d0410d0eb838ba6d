"""Everything that a run has been trained on, read again in the order of its steps and checked against its ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records
from data_pipeline.config import DataConfig
from data_pipeline.finite.samples import IndexedSamples
from data_pipeline.ledger import is_row, nearest_snapshot
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.packing import Sample
from data_pipeline.open_samples import open_samples
from data_pipeline.stream.samples import StreamSamples
from data_pipeline.tokenizer import Tokenizer

CONTEXT = 512
"""Most tokens of a document that a passage has before and after its own."""

_Key = tuple[int, int, int]
"""A document: its id, its file, and its place there."""


class Passage(NamedTuple):
    """A part of a document that a step was trained on, with what of the document around it was seen up to then."""

    step: int
    sample: int
    """Global sample number k."""
    document: tuple[str, int]
    """File or data set shard, and the position of the document in it."""
    tokens: np.ndarray
    """(n,) of this step."""
    before: np.ndarray
    """(at most `CONTEXT`,) what comes right before, where this step or an earlier one has seen it."""
    after: np.ndarray
    """(at most `CONTEXT`,) what comes right after, likewise."""


class SeenText:
    """The text that a run was trained on."""

    def __init__(
        self,
        run_dir: str | Path,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        objective: ObjectiveConfig,
        seed: int,
        cache: str | Path,
        epochs: float | None = None,
        until: int | None = None,
    ) -> None:
        """
        Args:
            run_dir: the run, of whose config the other settings are; see `open_samples`.
            until: the last step to read; None: of the ledger.

        Raises:
            UserError: a run without a ledger, a ledger with gaps, or files or settings that are no longer those of the
                run.
        """
        self._run = Path(run_dir)
        self._rows = _rows(self._run, until)
        # Neighbours in a document are less than two shuffled blocks of their lane apart.
        block = max(1, config.shuffle_buffer // config.lanes)
        self._recent = config.lanes * (2 * block + 2 + CONTEXT // config.sequence_length)
        self._source = open_samples(config, tokenizer, objective, seed=seed, cache=cache, epochs=epochs)
        snapshot = nearest_snapshot(self._run, self._rows[-1]["last_sample"] + 1)
        if snapshot is not None:
            # Refuses other files and another tokenizer at once, not at the first step; opens nothing.
            self._source.open(snapshot, snapshot["next_sample"], [])

    @property
    def steps(self) -> int:
        """The last step that is read."""
        return int(self._rows[-1]["step"])

    def passages(self) -> Iterator[Passage]:
        """All passages, step by step. Memory is bounded: the run's shuffle buffer, or a byte a sample of finite data.

        Raises:
            UserError: a step whose data are not those of the ledger.
        """
        source = self._source
        near: _Neighbours
        near = _InFiles(source) if isinstance(source, IndexedSamples) else _Recent(source, self._recent)
        for row in self._rows:
            last = row["last_sample"] if source.total is None else min(row["last_sample"], source.total - 1)
            numbers = range(row["first_sample"], last + 1)
            samples = source.samples(numbers)
            total = sum(source.digest_of(sample, k) for k, sample in zip(numbers, samples, strict=True)) % (1 << 64)
            if f"{total:016x}" != row["sum"]:
                raise UserError(
                    f"step {row['step']} of {self._run} has ledger sum {row['sum']}, but its data give {total:016x}"
                    f" now; restore the files, tokenizer and settings of the run"
                )
            for k, sample in zip(numbers, samples, strict=True):
                yield from self._passages(row["step"], k, sample, near)
        source.close()

    def _passages(self, step: int, k: int, sample: Sample, near: _Neighbours) -> Iterator[Passage]:
        names = {
            _key(piece): (origin.path, origin.position)
            for piece, origin in zip(sample.pieces, self._source.origins(sample, k), strict=True)
        }
        parts = _parts(sample)
        near.add(k, parts)
        for part in parts:
            before, after = near.around(k, part)
            yield Passage(step, k, names[part.document], part.tokens, before, after)


class _Part(NamedTuple):
    """Tokens of one document in a sample."""

    document: _Key
    start: int
    """Place of the first one in the document."""
    tokens: np.ndarray

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class _Neighbours(Protocol):
    """Finds what was seen of a document around a part of it."""

    def add(self, k: int, parts: list[_Part]) -> None:
        """Sample k is seen."""
        ...

    def around(self, k: int, part: _Part) -> tuple[np.ndarray, np.ndarray]:
        """At most `CONTEXT` tokens before and after a part of sample k."""
        ...


class _Recent:
    """Of a stream, where the parts of a document are at most two shuffled blocks apart: keeps as many samples."""

    def __init__(self, source: StreamSamples, samples: int) -> None:
        self._mixture = source.lanes.mixture
        self._size = 2 * samples  # parts
        self._kept: dict[_Key, dict[int, _Part]] = {}
        self._queues: dict[int, deque[_Part]] = {}

    def add(self, k: int, parts: list[_Part]) -> None:
        queue = self._queues.setdefault(self._mixture.group(k), deque())
        # Only the first and the last document of a sample go on in others.
        for part in parts if len(parts) < 3 else (parts[0], parts[-1]):
            self._kept.setdefault(part.document, {})[part.start] = part
            queue.append(part)
        while len(queue) > self._size:
            old = queue.popleft()
            same = self._kept.get(old.document, {})
            if same.get(old.start) is old:
                del same[old.start]
                if not same:
                    del self._kept[old.document]

    def around(self, k: int, part: _Part) -> tuple[np.ndarray, np.ndarray]:
        others = self._kept.get(part.document, {}).values()
        before, after = _Gathered(part.start), _Gathered(part.end)
        while before.size < CONTEXT and (found := next(filter(before.follows_on, others), None)):
            before.prepend(found)
        while after.size < CONTEXT and (found := next(filter(after.goes_on, others), None)):
            after.append(found)
        return before.tokens[-CONTEXT:], after.tokens[:CONTEXT]


class _InFiles:
    """Of a finite set, whose windows come in any order: remembers which were seen, and reads their tokens again."""

    def __init__(self, source: IndexedSamples) -> None:
        self._source = source
        self._seen = [np.zeros(size, dtype=bool) for size in source.sizes]

    def add(self, k: int, parts: list[_Part]) -> None:
        groups, indices = self._source.places([k])
        self._seen[groups[0]][indices[0]] = True

    def around(self, k: int, part: _Part) -> tuple[np.ndarray, np.ndarray]:
        groups, indices = self._source.places([k])
        group, index = int(groups[0]), int(indices[0])
        before, after = _Gathered(part.start), _Gathered(part.end)
        place = index - 1
        while before.size < CONTEXT and (found := self._part(group, place, before.follows_on, part.document)):
            before.prepend(found)
            place -= 1
        place = index + 1
        while after.size < CONTEXT and (found := self._part(group, place, after.goes_on, part.document)):
            after.append(found)
            place += 1
        return before.tokens[-CONTEXT:], after.tokens[:CONTEXT]

    def _part(self, group: int, place: int, fits: Any, document: _Key) -> _Part | None:
        if not (0 <= place < len(self._seen[group]) and self._seen[group][place]):
            return None
        parts = _parts(self._source.window(group, place))
        return next((part for part in parts if part.document == document and fits(part)), None)


class _Gathered:
    """Tokens of a document on one side of a place."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.tokens = np.zeros(0, dtype=np.int64)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def follows_on(self, part: _Part) -> bool:
        """Whether a part begins before the place and reaches it; windows may share tokens."""
        return part.start < self.place <= part.end

    def goes_on(self, part: _Part) -> bool:
        """Whether a part begins at the place or before it and reaches further."""
        return part.start <= self.place < part.end

    def prepend(self, part: _Part) -> None:
        self.tokens = np.concatenate([part.tokens[: self.place - part.start], self.tokens])
        self.place = part.start

    def append(self, part: _Part) -> None:
        self.tokens = np.concatenate([self.tokens, part.tokens[self.place - part.start :]])
        self.place = part.end


def _parts(sample: Sample) -> list[_Part]:
    """The documents of a sample; pieces that follow each other in one document are one part."""
    parts: list[_Part] = []
    place = 0
    for number, piece in enumerate(sample.pieces):
        # The second text of a pair belongs to the piece of the first.
        end = place + piece.length if number + 1 < len(sample.pieces) else len(sample.tokens)
        tokens = sample.tokens[place:end]
        place = end
        if parts and parts[-1].document == _key(piece) and parts[-1].end == piece.start:
            parts[-1] = parts[-1]._replace(tokens=np.concatenate([parts[-1].tokens, tokens]))
        else:
            parts.append(_Part(_key(piece), piece.start, tokens))
    return parts


def _key(piece: Any) -> _Key:
    return piece.document, piece.file, piece.position


def _rows(run: Path, until: int | None) -> list[dict[str, Any]]:
    """The ledger's rows up to a step, which must be all of them."""
    path = run / "ledger.jsonl"
    rows = [row for row in read_records(path) if row["step"] and (until is None or row["step"] <= until)]
    if not rows:
        raise UserError(f"{run} has no ledger of what it was trained on ({path}); give the directory of a run that has")
    due = 0
    for number, row in enumerate(rows, start=1):
        if row["step"] != number or not is_row(row) or row["first_sample"] != due:
            raise UserError(f"{path} has no row of step {number} that goes on with sample {due}; restore the file")
        due = row["last_sample"] + 1
    if until is not None and rows[-1]["step"] < until:
        raise UserError(
            f"{path} ends at step {rows[-1]['step']}, but the checkpoint is of step {until}; restore the file"
        )
    return rows
