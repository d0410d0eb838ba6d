"""Encoder-decoders: the target after its source."""

from __future__ import annotations

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import ReadAnswer
from data_pipeline.tokenizer import frame
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Place, Request, Row
from llmscale.evaluate.scorers.scorer import WINDOWED, Scorer


class Seq2Seq(Scorer):
    """The log-probability of the answer as the target of its context."""

    name = "seq2seq"

    @staticmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        return 2 if model.architecture == "encoder_decoder" else 0

    def request(self, item: Item) -> Request:
        request = Request()
        for number, answer in enumerate(item.answers):
            read = self.reader.answer(item.context_of(number), answer)
            request.answers.append((read, self._ask(read, request)))
            if item.neutral is not None:
                request.neutral.append(self._ask(self.reader.answer(item.neutral, answer), request))
        return request

    def _ask(self, read: ReadAnswer, request: Request) -> list[Place]:
        """Ask for the row of an answer."""
        assert read.source is not None
        limit = self.model.max_positions
        source = self._source(read.source, request)
        if len(read.tokens) > limit:
            raise self.too_long(len(read.tokens), answer=True)
        inputs = (*read.before, *read.tokens[:-1])
        return request.add(Row(inputs, tuple(enumerate(read.tokens)), source=source))

    def _source(self, source: tuple[int, ...], request: Request) -> tuple[int, ...]:
        """A source, without its beginning where it is longer than the model's context."""
        if len(source) <= self.model.max_positions:
            return source
        if self.length.overflow == "refuse":
            raise self.too_long(len(source))
        if WINDOWED not in request.flags:
            request.flags.append(WINDOWED)
        begin = len(frame.text_frame(self.reader.tokenizer, source=True)[0])
        return source[:begin] + source[len(source) - self.model.max_positions + begin :]
