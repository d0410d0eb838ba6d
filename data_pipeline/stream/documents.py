"""The documents of one lane, tokenised block by block, from any place on and epoch after epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import shuffled
from data_pipeline.document import Document
from data_pipeline.objectives import Objective
from data_pipeline.objectives.packing import Place, TokenizedDocument, encode_documents, stored_values
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span, by_reason
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import plain_frame

LOOK_AHEAD = 8
"""Most documents that are looked at for one that differs from the current."""


class LaneDocuments:
    """The documents that one group of sources gives to one lane, epoch after epoch."""

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, objective: Objective, spans: list[Span], *key: int, label: str
    ) -> None:
        """`key`: seed, lane and group, which decide the order of the spans; `label` names the group in messages."""
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._objective = objective
        self._spans = spans
        self._key = key
        self._label = label
        self._ahead: deque[TokenizedDocument] = deque()
        frame = objective.frame or plain_frame(tokenizer)
        # In front of the first document of a block, and between two.
        self._first = np.array([tokenizer.special["eos"], *frame.begin], dtype=np.int32)
        self._between = np.array([*frame.end, *frame.begin], dtype=np.int32)
        self._order: list[int] = []

    def seek(self, place: Place) -> None:
        """Go to a document; the next call of `next` returns it."""
        self._ahead.clear()
        self._epoch, self._index = place.epoch, place.span
        self._order = self._permutation()
        self._position: int | None = place.position
        # Only an epoch that is read from its start can be measured.
        self._held: int | None = 0 if place[1:] == (0, -1, 0) else None
        if place.position >= 0:
            self._read()
            if not self._ahead or self._ahead[0][1:5:3] != (place.span, place.position):
                path = self._corpus.files[self._spans[self._order[place.span]].file].path
                raise UserError(
                    f"{path} has no document at position {place.position} any more; restore the file that the run"
                    f" was saved with, or start a new run"
                )

    def next(self) -> TokenizedDocument:
        """The next document of the lane."""
        if not self._ahead:
            self._fill(1)
        return self._ahead.popleft()

    def other_than(self, document: int) -> TokenizedDocument | None:
        """The nearest document ahead with another id and some text; None where the next few have none."""
        for place in range(LOOK_AHEAD):
            self._fill(place + 1)
            found = self._ahead[place]
            if found.document != document and len(found.tokens) > 2:
                return found
        return None

    def _fill(self, count: int) -> None:
        while len(self._ahead) < count:
            if self._position is None:
                self._next_span()
            self._read()

    def _permutation(self) -> list[int]:
        return shuffled(list(range(len(self._spans))), *self._key, self._epoch)

    def _read(self) -> None:
        """Tokenise the next block of documents: in one call, which is faster than one by one."""
        assert self._position is not None
        span = self._spans[self._order[self._index]]
        documents, self._position = self._corpus.read(span, max(self._position, span.start))
        documents = list(self._objective.checked(documents, self._corpus.place, self._corpus.dropped))
        encoded = encode_documents(self._tokenizer, documents)
        others = self._others(documents)
        # One array for the block: eos, text, eos, text, eos. Neighbours share the eos between them.
        parts = [self._between] * (2 * len(encoded) + 1)
        parts[0] = self._first
        parts[1::2] = encoded
        flat = np.concatenate(parts)
        start, epoch, index = 0, self._epoch, self._index
        for (document, file, position, *_), ids, stored in zip(documents, encoded, others, strict=True):
            end = start + len(ids) + len(self._between)
            tokens = flat[start : end + 1]
            self._ahead.append(TokenizedDocument(epoch, index, document, file, position, tokens, stored))
            start = end
        if self._held is not None:
            # Of a document whose text comes to no token, sentences take nothing.
            texts = [ids for ids in encoded if len(ids)] if self._objective.unit == "sentences" else encoded
            self._held += start if self._objective.unit == "window" else len(texts)

    def _others(self, documents: list[Document]) -> Sequence[tuple[np.ndarray, ...]]:
        """What else is stored of each document."""
        stored = self._objective.config.stored
        if not stored.arrays:
            return [()] * len(documents)
        others = [stored_values(document.values, stored) for document in documents]
        if not stored.target:
            return others
        targets = self._tokenizer.encode_batch([document.target or "" for document in documents])
        return [(target, *values) for target, values in zip(targets, others, strict=True)]

    def _next_span(self) -> None:
        self._index += 1
        self._position = -1
        if self._index == len(self._spans):
            self._require_enough()
            self._epoch, self._index, self._held = self._epoch + 1, 0, 0
            self._order = self._permutation()

    def _require_enough(self) -> None:
        """An epoch without a sample would go on for ever, or show the same text twice in one sample."""
        window = self._objective.unit == "window"
        need = self._objective.length - self._objective.overlap if window else 1
        if self._held is not None and self._held < need:
            what = f"tokens, less than one sample ({need})" if window else f"documents, less than {need}"
            source = "" if self._label == "all" else f" of source {self._label}"
            dropped = by_reason(self._corpus.dropped)
            raise UserError(
                f"lane {self._key[1]} holds only {self._held} {what}{source}"
                f"{f' (reading dropped or repaired {dropped})' if dropped else ''};"
                f" lower data.lanes or data.sequence_length, or add documents"
            )
