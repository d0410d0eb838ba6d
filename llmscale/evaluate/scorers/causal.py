"""Decoders: each token after all those before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import ReadAnswer
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Place, Request, Row
from llmscale.evaluate.scorers.scorer import WINDOWED, Scorer


@dataclass(frozen=True)
class _Sequence:
    """A text of which the tokens from `first` on are scored."""

    ids: tuple[int, ...]
    first: int


class Causal(Scorer):
    """The log-probability of an answer is the sum over its tokens (Brown et al. 2020, section 2.4).

    Answers of one item share the tokens that they have in common, which are read once: a row holds them, then what is
    left of each answer, which sees the common tokens and itself. What a row holds depends on its item and the model
    alone, so that the scores do too.
    """

    name = "causal"
    windows = True

    @staticmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        return int(model.architecture == "decoder")

    def request(self, item: Item) -> Request:
        request = Request()
        asked = [(self.reader.answer(item.context_of(n), text), False) for n, text in enumerate(item.answers)]
        if item.neutral is not None:
            asked += [(self.reader.answer(item.neutral, text), True) for text in item.answers]
        limit = self.model.max_positions
        short: list[int] = []
        places: dict[int, list[Place]] = {}
        sequences: list[_Sequence] = []
        for number, (read, _) in enumerate(asked):
            sequence = self._sequence(read, request)
            sequences.append(sequence)
            if len(sequence.ids) - 1 <= limit and not self.length.window:
                short.append(number)
            else:
                places[number] = request.extend(self._windows(sequence))
        for group in self._groups([sequences[number] for number in short]):
            numbers = [short[member] for member in group]
            for number, found in zip(numbers, self._pack([sequences[n] for n in numbers], request), strict=True):
                places[number] = found
        for number, (read, neutral) in enumerate(asked):
            if neutral:
                request.neutral.append(places[number])
            else:
                request.answers.append((read, places[number]))
        return request

    def _sequence(self, read: ReadAnswer, request: Request) -> _Sequence:
        """The tokens of an answer and what of its context there is room for."""
        before, tokens, limit = read.before, read.tokens, self.model.max_positions
        excess = len(before) + len(tokens) - 1 - limit
        if excess > 0:
            if self.length.overflow == "refuse":
                raise self.too_long(len(before) + len(tokens))
            if WINDOWED not in request.flags:
                request.flags.append(WINDOWED)
            room = len(before) - read.begin
            if self.length.overflow == "truncate-left":
                if excess > room:
                    raise self.too_long(read.begin + len(tokens), answer=True)
                before = (*before[: read.begin], *before[read.begin + excess :])
        return _Sequence((*before, *tokens), len(before))

    def joined(self, items: Sequence[Item], separator: str | None) -> list[Request]:
        """What is asked about items whose texts follow each other: windows go on across the borders of texts, and a
        row is asked for the tokens of each text that it scores.

        Args:
            separator: text between them; None: as documents in training.

        Raises:
            UserError: a text becomes no token.
        """
        reads = self.reader.documents([item.answers[0] for item in items], separator)
        ids: list[int] = []
        owners: list[int] = []
        for number, read in enumerate(reads):
            ids += (*read.before, *read.tokens)
            owners += [-1] * len(read.before) + [number] * len(read.tokens)
        requests = [Request() for _ in items]
        places: list[list[Place]] = [[] for _ in items]
        for start, done, end in self._extents(len(ids), len(reads[0].before)):
            for number, own in itertools.groupby(range(done, end), key=owners.__getitem__):
                if number >= 0:
                    row = self._row(ids[start : end - 1], [(place - 1 - start, ids[place]) for place in own])
                    places[number] += requests[number].add(row)
        for request, read, found in zip(requests, reads, places, strict=True):
            request.answers.append((read, found))
        return requests

    def _windows(self, sequence: _Sequence) -> Iterator[Row]:
        """Rows of at most a window's tokens, which score each token of the answer once."""
        ids = sequence.ids
        for start, done, end in self._extents(len(ids), sequence.first):
            yield self._row(ids[start : end - 1], [(place - 1 - start, ids[place]) for place in range(done, end)])

    def _extents(self, count: int, done: int) -> Iterator[tuple[int, int, int]]:
        """Windows over `count` tokens, all of which from `done` on are scored once, with as much context as fits: as is
        usual for perplexity on long texts (lm-evaluation-harness's rolling windows where the stride is not set). Of
        each the first token that it reads, the first that it scores, and the one behind its last."""
        size = min(self.length.window or self.model.max_positions, self.model.max_positions)
        stride = self.length.stride or size
        # At most half of the first window is context, where not all of it fits.
        start = max(0, done - max(size // 2, 1)) if count - 1 > size else 0
        end = min(start + size + 1, count)
        while True:
            yield start, done, end
            done = end
            if done >= count:
                return
            end = min(done + stride, count)
            start = end - 1 - size

    def _row(self, inputs: Sequence[int], targets: list[tuple[int, int]], prefix: int = 0) -> Row:
        return Row(tuple(inputs), tuple(targets), prefix=prefix)

    def _groups(self, sequences: list[_Sequence]) -> list[list[int]]:
        """Which sequences share a row."""
        if not self._shares():
            return [[number] for number in range(len(sequences))]
        groups: list[list[int]] = []
        for number, sequence in enumerate(sequences):
            for group in groups:
                joined = [sequences[member] for member in group] + [sequence]
                common = _common(joined)
                inputs = common + sum(len(each.ids) - 1 - common for each in joined)
                # A short beginning in common is not worth the mask.
                if 2 * common >= max(each.first for each in joined) and inputs <= self.model.max_positions:
                    group.append(number)
                    break
            else:
                groups.append([number])
        return groups

    def _shares(self) -> bool:
        """Whether the model can read several answers side by side: whatever else depends on places looks at positions,
        and none of its layers looks at a window of places."""
        model = self.model
        kinds = {model.attention_kind(layer) for layer in range(model.layers)}
        return model.positions in ("learned", "rotary", "sinusoidal") and kinds == {"global"} and self._document

    @property
    def _document(self) -> bool:
        return self.reader.form != "prefix"

    def _pack(self, sequences: list[_Sequence], request: Request) -> list[list[Place]]:
        """Ask for one row of sequences that share it."""
        common = _common(sequences)
        if len(sequences) == 1 or all(len(each.ids) - 1 == common for each in sequences):
            return [request.add(self._plain(each)) for each in sequences]
        inputs, positions, branches = list(sequences[0].ids[:common]), list(range(common)), [0] * common
        targets: list[tuple[int, int]] = []
        for number, each in enumerate(sequences, start=1):
            offset = len(inputs) - common
            inputs += each.ids[common:-1]
            positions += range(common, len(each.ids) - 1)
            branches += [number] * (len(each.ids) - 1 - common)
            places = (
                place - 1 if place <= common else offset + place - 1 for place in range(each.first, len(each.ids))
            )
            targets += zip(places, each.ids[each.first :], strict=True)
        row = Row(
            tuple(inputs),
            tuple(targets),
            positions=tuple(positions),
            branches=tuple(branches),
            shared=common,
        )
        found = iter(request.add(row))
        return [list(itertools.islice(found, len(each.ids) - each.first)) for each in sequences]

    def _plain(self, sequence: _Sequence) -> Row:
        ids, first = sequence.ids, sequence.first
        targets = [(place - 1, ids[place]) for place in range(first, len(ids))]
        return self._row(ids[:-1], targets, prefix=0 if self._document else first)


def _common(sequences: Sequence[_Sequence]) -> int:
    """How many tokens from the start all of some sequences share, none of which is scored."""
    most = min(each.first for each in sequences)
    lead = sequences[0].ids
    return next((n for n in range(most) if any(each.ids[n] != lead[n] for each in sequences)), most)
