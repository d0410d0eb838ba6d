"""Encoders: each token hidden in turn."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import ReadAnswer
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Request, Row
from llmscale.evaluate.scorers.scorer import WINDOWED, Scorer


class PseudoLikelihood(Scorer):
    """The sum over the tokens of an answer of the log-probability of each, given all others (Salazar et al. 2020,
    equation 1)."""

    name = "pseudo_likelihood"

    @staticmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        return 2 * (model.architecture == "encoder")

    def request(self, item: Item) -> Request:
        request = Request()
        for number, answer in enumerate(item.answers):
            read = self._fitted(self.reader.answer(item.context_of(number), answer), request)
            request.answers.append((read, request.extend(self._rows(read))))
            if item.neutral is not None:
                neutral = self._fitted(self.reader.answer(item.neutral, answer), request)
                request.neutral.append(request.extend(self._rows(neutral)))
        return request

    def _fitted(self, read: ReadAnswer, request: Request) -> ReadAnswer:
        """The answer with as much of its context as there is room for."""
        size = len(read.before) + len(read.tokens) + len(read.after)
        excess = size - self.model.max_positions
        if excess <= 0:
            return read
        room = len(read.before) - read.begin
        if excess > room:
            raise self.too_long(size - room, answer=True)
        if self.length.overflow == "refuse":
            raise self.too_long(size)
        if WINDOWED not in request.flags:
            request.flags.append(WINDOWED)
        before = (*read.before[: read.begin], *read.before[read.begin + excess :])
        return ReadAnswer(**{**vars(read), "before": before})

    def _rows(self, read: ReadAnswer) -> Iterator[Row]:
        ids, first = (*read.before, *read.tokens, *read.after), len(read.before)
        mask = self.reader.tokenizer.special["mask"]
        for number, token in enumerate(read.tokens):
            hidden = {first + other for other in self._hidden(read, number)}
            inputs = tuple(mask if place in hidden else each for place, each in enumerate(ids))
            yield Row(inputs, ((first + number, token),))

    def _hidden(self, read: ReadAnswer, number: int) -> range:
        """The tokens of the answer that are hidden while token `number` is scored."""
        return range(number, number + 1)
