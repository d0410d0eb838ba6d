"""Labels that a fine-tuned head gives the words of items of kind tag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.objectives.token_classification import (
    TokenClassification,
    TokenClassificationObjective,
    located,
    windows,
)
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer.units import encode_units
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.heads.tokens import TokenHeadAsker, TokenRow
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED
from llmscale.evaluate.tasks.kinds.tag import TagTask

_NONE = "O"
"""The tag of a word that becomes no token, where the model knows it."""


class Asker(TokenHeadAsker):
    """Asks the head that objective token_classification has trained: the label of a word is that of its first token."""

    trained_by = TokenClassificationObjective

    def __init__(self, placed: Placed, settings: TagTask) -> None:
        super().__init__(placed, settings)
        self.require_labels(settings.labels)
        self._made = TokenClassification(self.objective, placed.tokenizer, placed.config.data.sequence_length)

    def found(self, items: Sequence[Item]) -> list[Record]:
        texts = [self._read(item) for item in items]
        scores = iter(self.scores([row for rows, _ in texts for row in rows]))
        records = []
        for item, (rows, firsts) in zip(items, texts, strict=True):
            begin, end = len(self._made.begin), len(self._made.end)
            logits = [next(scores)[begin : len(row.tokens) - end] for row in rows]
            tags = self._tags(np.concatenate(logits), firsts)
            records.append(Record.of(item, [WINDOWED] if len(rows) > 1 else [], generated=tags))
        return records

    def _read(self, item: Item) -> tuple[list[TokenRow], np.ndarray]:
        """The rows of an item's text, and the first token of each word; -1 for words that become none."""
        text = item.contexts[0]
        tokens = encode_units(self.tokenizer, text, located(text, item.answers))
        rows = []
        for first, last in windows(tokens, self._made.size):
            ids = np.concatenate([self._made.begin, tokens.ids[first:last], self._made.end])
            rows.append(TokenRow(ids, len(ids)))
        return rows, tokens.firsts

    def _tags(self, logits: np.ndarray, firsts: np.ndarray) -> list[str]:
        labels = self.objective.labels
        lost = _NONE if _NONE in labels else labels[0]
        return [lost if first < 0 else labels[int(logits[first].argmax())] for first in firsts]
