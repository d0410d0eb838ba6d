"""Encoder-decoders that were trained on cut-out spans: what was cut out."""

from __future__ import annotations

import numpy as np

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import ReadAnswer
from data_pipeline.tokenizer import frame
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.rows import Place, Request, Row
from llmscale.evaluate.scorers.seq2seq import Seq2Seq


class Infill(Seq2Seq):
    """An answer is what a sentinel stands for (Raffel et al. 2020, section 3.1.4).

    After a context the answer is cut out as a whole. Without one, as in minimal pairs, each of its words is in turn,
    so that its log-probability is that of its words given all others.
    """

    name = "infill"

    @staticmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        return (3 if objective.fills_gaps else 1) if model.architecture == "encoder_decoder" else 0

    def request(self, item: Item) -> Request:
        request = Request()
        for number, answer in enumerate(item.answers):
            context = item.context_of(number)
            read = self.reader.answer(context, answer)
            request.answers.append((read, self._cut(read, context, request)))
            if item.neutral is not None:
                request.neutral.append(self._cut(self.reader.answer(item.neutral, answer), item.neutral, request))
        return request

    def _cut(self, read: ReadAnswer, context: str, request: Request) -> list[Place]:
        begin, end = frame.text_frame(self.reader.tokenizer, source=True)
        before = self.reader.tokenizer.encode(context)
        words = np.zeros(len(read.tokens), dtype=np.int64) if context else self.reader.words(read)
        places: list[Place] = []
        for word in range(int(words[-1]) + 1):
            inside = np.flatnonzero(words == word)
            first, last = int(inside[0]), int(inside[-1]) + 1
            sentinel = self.reader.tokenizer.special["sentinel_0"]
            source = (*begin, *before, *read.tokens[:first], sentinel, *read.tokens[last:], *end)
            cut = read.tokens[first:last]
            if len(cut) + 1 > self.model.max_positions:
                raise self.too_long(len(cut) + 1, answer=True)
            targets = tuple(enumerate(cut, start=1))
            row = Row((*read.before, sentinel, *cut[:-1]), targets, source=self._source(source, request))
            places += request.add(row)
        return places
