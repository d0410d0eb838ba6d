"""Finite sets of samples over .bin/.idx prefixes: windows of the token stream, examples, and chunks of documents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.finite.format import BLOCK
from data_pipeline.finite.shards import Shards, check_range, offsets


class WindowDocuments(NamedTuple):
    """Which documents windows hold: each the end of its first one, then whole ones, then the beginning of the last."""

    first: np.ndarray
    """(B,) int64: number of the document of the first token."""
    offset: np.ndarray
    """(B,) int64: place of the first token in that document."""
    last: np.ndarray
    """(B,) int64: number of the document of the last token. Empty documents in between have no tokens in the window."""


class Windows:
    """Windows of a fixed length over each prefix's token stream, each of which begins `overlap` tokens before the end
    of the one before. The last of a prefix may be shorter; every token is in a window, and none of `overlap` tokens or
    fewer is made, since it would hold nothing new."""

    def __init__(self, shards: Shards, length: int, overlap: int = 0) -> None:
        """`length`: tokens of a window; `overlap`: tokens shared by neighbours, 1 to predict each token from the one
        before (inputs and targets of length - 1). Raises ValueError unless 0 <= overlap < length."""
        if not 0 <= overlap < length:
            raise ValueError(f"windows of {length} tokens cannot overlap by {overlap}")
        self.shards = shards
        self.length = length
        self._step = length - overlap
        self._sizes = np.array([len(dataset.tokens) for dataset in shards.datasets])
        self._first = offsets(np.maximum(0, -(-(self._sizes - overlap) // self._step)))

    def __len__(self) -> int:
        return int(self._first[-1])

    def gather(self, indices: np.ndarray, fill: int = 0, dtype: type = np.int64) -> tuple[np.ndarray, np.ndarray]:
        """Windows by number.

        Args:
            indices: (B,) integers in range(len(self)).
            fill: what stands behind the end of a short window.
            dtype: numpy.int64 or numpy.int32.

        Returns:
            Tokens, (B, length) of `dtype`, and how many of each row are true, (B,) int64.

        Raises:
            IndexError: an index out of range.
        """
        shard, start, lengths = self._bounds(indices)
        tokens: np.ndarray = np.empty((len(start), self.length), dtype=dtype)
        datasets = self.shards.datasets
        # Slices are several times faster than fancy indexing, which needs an index for every token.
        if len(start) and lengths.min() == self.length:
            places = zip(shard.tolist(), start.tolist(), strict=True)
            rows = [datasets[number].tokens[first : first + self.length] for number, first in places]
            np.concatenate(rows, out=tokens.reshape(-1), casting="unsafe")
            return tokens, lengths
        for row, (number, first, count) in enumerate(
            zip(shard.tolist(), start.tolist(), lengths.tolist(), strict=True)
        ):
            tokens[row, :count] = datasets[number].tokens[first : first + count]
            if count < self.length:
                tokens[row, count:] = fill
        return tokens, lengths

    def segments(self, indices: np.ndarray) -> np.ndarray:
        """(B, length) int32: for each token the number of its document within the window, from 0, not counting empty
        documents. What stands behind a short window's end goes on with the number of its last token."""
        shard, start, lengths = self._bounds(indices)
        segments = np.zeros((len(start), self.length), dtype=np.int32)
        for number in np.unique(shard):
            rows = np.flatnonzero(shard == number)
            dataset = self.shards.datasets[number]
            first, last = self._ends(number, start[rows], lengths[rows])
            inner = last - first
            row = np.repeat(rows, inner)
            # The documents first + 1 to last of each row, in one list.
            within = np.arange(len(row)) - np.repeat(np.cumsum(inner) - inner, inner)
            places = dataset.starts(np.repeat(first, inner) + 1 + within) - start[row]
            # Documents that begin at one place are empty but for the last of them.
            segments[row, places] = 1
        return np.cumsum(segments, axis=1, dtype=np.int32, out=segments)

    def documents(self, indices: np.ndarray) -> WindowDocuments:
        """Which documents (numbers as in `shards`) and which of their tokens the windows hold."""
        shard, start, lengths = self._bounds(indices)
        first, offset = self._documents_at(shard, start)
        return WindowDocuments(first, offset, self._documents_at(shard, start + lengths - 1)[0])

    def first_documents(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`first` and `offset` of `documents`, in half the time."""
        shard, start, _ = self._bounds(indices)
        return self._documents_at(shard, start)

    def _documents_at(self, shard: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The document of each token, as numbered in `shards`, and the token's place in it."""
        document, offset = (np.empty(len(tokens), dtype=np.int64) for _ in range(2))
        for number in np.unique(shard):
            rows = np.flatnonzero(shard == number)
            dataset = self.shards.datasets[number]
            document[rows] = dataset.documents_at(tokens[rows])
            offset[rows] = tokens[rows] - dataset.starts(document[rows])
        return document + self.shards.first_documents[shard], offset

    def _bounds(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prefix number, first token in it, and length of each window."""
        indices = np.asarray(indices, dtype=np.int64)
        check_range(indices, len(self))
        shard = np.searchsorted(self._first, indices, "right") - 1
        start = (indices - self._first[shard]) * self._step
        return shard, start, np.minimum(self.length, self._sizes[shard] - start)

    def _ends(self, number: int, start: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents of the first and of the last token of windows of one prefix."""
        found = self.shards.datasets[number].documents_at(np.concatenate([start, start + lengths - 1]))
        return found[: len(start)], found[len(start) :]


class Examples:
    """Examples of one document each, or of two consecutive ones (source and target of a pair)."""

    def __init__(self, shards: Shards, per_example: int = 1) -> None:
        """Raises ValueError where a prefix holds part of an example."""
        self.shards = shards
        self.per_example = per_example
        for dataset in shards.datasets:
            if dataset.document_count % per_example:
                raise ValueError(
                    f"{dataset.prefix} has {dataset.document_count} documents, which do not make examples of"
                    f" {per_example}"
                )

    def __len__(self) -> int:
        return self.shards.document_count // self.per_example

    def get(self, index: int) -> list[np.ndarray]:
        """The documents of an example: views of the file, not to be written to. Raises IndexError out of range."""
        first = index * self.per_example
        return [self.shards.document(first + part) for part in range(self.per_example)]


class Chunk(NamedTuple):
    """Part of a document."""

    document: int
    """Its number, as in `Shards`."""
    offset: int
    """Place of the first token in the document."""
    tokens: np.ndarray
    """1-D view of the file, not to be written to."""


def end_tokens(shards: Shards, end: int | None) -> list[int]:
    """How many tokens, 1 or 0, end each document of every prefix beside its text. Megatron-LM writes `end` only where
    it is asked to, so a prefix whose first document does not end with it has none."""
    firsts = [dataset.document(0)[-1:].tolist() if dataset.document_count else [] for dataset in shards.datasets]
    return [int(last == [end]) for last in firsts]


class Chunks:
    """Documents cut into consecutive chunks of `length` tokens, the last one shorter; none crosses a document, and an
    empty document has none."""

    _STRIDE = 1024
    """One running sum in so many documents is kept in memory."""

    def __init__(self, shards: Shards, length: int, end: int | None = None) -> None:
        """Goes once through the documents' lengths. Raises ValueError unless length >= 1.

        `end`: the token that ends documents, which then belongs to no chunk; see `end_tokens`.
        """
        if length < 1:
            raise ValueError(f"chunks of {length} tokens are not possible")
        self.shards = shards
        self.length = length
        self._ends = end_tokens(shards, end)
        # (shard, its first document) of each stride, and the chunks before it.
        self._strides: list[tuple[int, int]] = []
        counts: list[np.ndarray] = []
        for number, dataset in enumerate(shards.datasets):
            for first in range(0, dataset.document_count, BLOCK):
                chunks = self._counts(number, first, first + BLOCK)
                edges = np.arange(0, len(chunks), self._STRIDE)
                self._strides += [(number, first + int(edge)) for edge in edges]
                counts.append(np.add.reduceat(chunks, edges))
        self._first = offsets(np.concatenate(counts) if counts else [])

    def __len__(self) -> int:
        return int(self._first[-1])

    def get(self, index: int) -> Chunk:
        """A chunk by number, in the order of documents. Raises IndexError out of range."""
        check_range(np.array(index), len(self))
        stride = int(np.searchsorted(self._first, index, "right")) - 1
        number, first = self._strides[stride]
        before = offsets(self._counts(number, first, first + self._STRIDE))
        within = index - int(self._first[stride])
        local = int(np.searchsorted(before, within, "right")) - 1
        offset = (within - int(before[local])) * self.length
        tokens = self.shards.datasets[number].document(first + local)
        tokens = tokens[: len(tokens) - self._ends[number]]
        return Chunk(
            int(self.shards.first_documents[number]) + first + local, offset, tokens[offset : offset + self.length]
        )

    def document(self, number: int) -> np.ndarray:
        """The tokens of a whole document: a view of the file, not to be written to."""
        return self.shards.document(number)

    def _counts(self, number: int, first: int, stop: int) -> np.ndarray:
        """Chunks of each of some documents of a prefix."""
        dataset = self.shards.datasets[number]
        lengths = dataset.lengths(first, min(stop, dataset.document_count))
        return -(-np.maximum(lengths - self._ends[number], 0) // self.length)
