"""What a tokenizer makes of a corpus: tokens per byte, unknown text, lengths of documents; from an even sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.document import Document
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import BLOCK_BYTES, Span
from data_pipeline.tokenizer import Tokenizer

ENCODE_BYTES = 1 << 18
PERCENTILES = (10, 50, 90, 99)


@dataclass
class TextStatistics:
    """Counts over some documents; those of several corpora can be added with `+`."""

    bytes: int = 0
    """UTF-8 bytes."""
    characters: int = 0
    unknown: int = 0
    """Tokens that are the unknown token."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each document; both texts of a pair together."""

    def __add__(self, other: TextStatistics) -> TextStatistics:
        return TextStatistics(
            self.bytes + other.bytes,
            self.characters + other.characters,
            self.unknown + other.unknown,
            self.lengths + other.lengths,
        )

    def figures(self) -> dict[str, Any]:
        """JSON: counts, tokens per byte, characters per token, unknown tokens per token, and the mean, percentiles and
        maximum of document lengths in tokens. What cannot be said without text is None."""
        tokens = sum(self.lengths)
        percentiles: list[int | None] = [None] * len(PERCENTILES)
        if self.lengths:
            percentiles = np.percentile(self.lengths, PERCENTILES, method="nearest").tolist()
        return {
            "documents": len(self.lengths),
            "bytes": self.bytes,
            "characters": self.characters,
            "tokens": tokens,
            "tokens_per_byte": tokens / self.bytes if self.bytes else None,
            "characters_per_token": self.characters / tokens if tokens else None,
            "unknown_rate": self.unknown / tokens if tokens else None,
            "document_tokens": {
                "mean": tokens / len(self.lengths) if self.lengths else None,
                **{f"p{percent}": value for percent, value in zip(PERCENTILES, percentiles, strict=True)},
                "max": max(self.lengths, default=None),
            },
        }


def measure(documents: Iterable[Document], tokenizer: Tokenizer, advance: Callable[[int], None]) -> TextStatistics:
    """Statistics of documents, which are encoded in batches; `advance` gets the bytes of each batch."""
    found = TextStatistics()
    unknown = tokenizer.special.get("unk", -1)
    for batch in _batches(documents):
        texts = [text for document in batch for text in (document.text, document.target) if text is not None]
        encoded = iter(tokenizer.encode_batch(texts))
        for document in batch:
            ids = [next(encoded) for _ in range(1 if document.target is None else 2)]
            found.lengths.append(sum(map(len, ids)))
            found.unknown += sum(int((part == unknown).sum()) for part in ids)
        size = sum(len(text.encode()) for text in texts)
        found.bytes += size
        found.characters += sum(map(len, texts))
        advance(size)
    return found


def source_spans(corpus: Corpus, source: int) -> list[Span]:
    """The spans of a source, by its index, that can hold training documents."""
    return [span for span in corpus.side(held_out=False) if corpus.files[span.file].source == source]


def sample_documents(corpus: Corpus, source: int, max_bytes: int) -> Iterator[Document]:
    """Training documents of a source from evenly spaced places, until their text has about `max_bytes`; all documents
    where the source is no larger, or `max_bytes` is 0. Documents are never cut, so long ones may exceed it."""
    spans = source_spans(corpus, source)
    total = sum(span.size for span in spans)
    if max_bytes == 0 or total <= max_bytes:
        for span in spans:
            position: int | None = span.start
            while position is not None:
                documents, position = corpus.read(span, position)
                yield from documents
        return
    passed = taken = 0
    for span in spans:
        passed += span.size
        # Each span earns its share; what long documents take too much is saved at the next ones.
        due = max_bytes * passed // total - taken
        if due > 0:
            for document in _sample_span(corpus, span, due):
                taken += _size(document)
                yield document


def _sample_span(corpus: Corpus, span: Span, due: int) -> Iterator[Document]:
    """Whole blocks from evenly spaced places, so that what was dropped while reading belongs to what was taken."""
    places = -(-due // BLOCK_BYTES)
    # A shard or a compressed file is read from its start.
    step = (span.stop - span.start) // places if corpus.can_enter(span) else 0
    position: int | None = span.start
    for i in range(places):
        if position is not None:
            documents, position = corpus.read(span, max(position, span.start + i * step))
            yield from documents


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += _size(document)
        if size >= ENCODE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(document: Document) -> int:
    return len(document.text.encode()) + (0 if document.target is None else len(document.target.encode()))
