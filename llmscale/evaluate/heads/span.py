"""Answers that a fine-tuned head finds in the passages of items of kind span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.objectives.span import Span, SpanObjective
from data_pipeline.reading.item import Item
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.heads.tokens import TokenHeadAsker, TokenRow
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED
from llmscale.evaluate.tasks.kinds.span import SpanTask


@dataclass(frozen=True)
class _Row(TokenRow):
    """A window of an item's passage."""

    passage: range
    """Places of the passage's tokens."""
    nowhere: int
    """The place that stands for no answer."""
    spans: np.ndarray
    """(P, 2) bytes of the passage's tokens."""


class Asker(TokenHeadAsker):
    """Asks the head that objective span has trained."""

    trained_by = SpanObjective

    def __init__(self, placed: Placed, settings: SpanTask) -> None:
        super().__init__(placed, settings)
        self._settings = settings
        self._made = Span(self.objective, placed.tokenizer, placed.config.data.sequence_length)

    def found(self, items: Sequence[Item]) -> list[Record]:
        read = [self._rows(item) for item in items]
        scores = iter(self.scores([row for rows in read for row in rows]))
        records = []
        for item, rows in zip(items, read, strict=True):
            text = self._answer(item.contexts[1], rows, [next(scores) for _ in rows])
            records.append(Record.of(item, [WINDOWED] if len(rows) > 1 else [], generated=[text]))
        return records

    def _rows(self, item: Item) -> list[_Row]:
        question, passage = item.contexts
        ids, spans = self.tokenizer.encode_with_spans(passage)
        rows = []
        for window in self._made.windows(np.array(self.tokenizer.encode(question), dtype=np.int32), ids):
            tokens, first, nowhere = self._made.row(window.question, window.tokens)
            size = len(window.tokens)
            own = spans[window.first : window.first + size]
            rows.append(_Row(tokens, first, range(first, first + size), nowhere, own))
        return rows

    def _answer(self, passage: str, rows: Sequence[_Row], scores: Sequence[np.ndarray]) -> str:
        """The text of the best span over all windows; "" where none is better (Devlin et al. 2019, section 4.3)."""
        best, place, nowhere = -np.inf, (0, 0), np.inf
        for row, logits in zip(rows, scores, strict=True):
            nowhere = min(nowhere, float(logits[row.nowhere].sum()))
            own = best_span(logits[row.passage.start : row.passage.stop], self._settings.max_answer_length)
            if own is not None and own[0] > best:
                best, place = own[0], (int(row.spans[own[1], 0]), int(row.spans[own[2], 1]))
        if self._settings.unanswerable and nowhere - best > self._settings.null_threshold:
            return ""
        return passage.encode()[slice(*place)].decode(errors="ignore").strip()


def best_span(logits: np.ndarray, most: int) -> tuple[float, int, int] | None:
    """Score, first and last token of the span of at most so many tokens with the greatest sum of both ends' logits.

    Args:
        logits: (P, 2).
    """
    if not len(logits):
        return None
    sums = logits[:, 0].astype(np.float64)[:, None] + logits[:, 1].astype(np.float64)
    places = np.arange(len(logits))
    apart = places - places[:, None]
    sums[(apart < 0) | (apart >= most)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), int(start), int(end)
