"""Documents to samples: where a sample's tokens come from, and where the next one begins."""

from __future__ import annotations

import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from data_pipeline.base.durable import json_bytes, parse_json
from data_pipeline.base.random import uniforms
from data_pipeline.document import Document
from data_pipeline.tokenizer import Tokenizer


class Piece(NamedTuple):
    """The part of one document that a sample holds."""

    document: int
    """64-bit id of the document."""
    file: int
    """Index into `Corpus.files`, or of a prefix of pre-tokenised shards."""
    position: int
    """Position of the document in that file."""
    start: int
    """First token of the part, in the document as `TokenizedDocument.tokens` has it."""
    length: int
    """Tokens of the part."""


class Stored(NamedTuple):
    """What is kept of a document besides its text, each as an array."""

    target: bool = False
    """The tokens of its second text."""
    values: tuple[str, ...] = ()
    """Values of its other fields, by the names of `SourceConfig.fields`: as JSON, a byte an element."""
    made_of: tuple[str, ...] = ()
    """The fields that the values are made of, where an objective makes its own examples; else they are the values."""

    @property
    def arrays(self) -> int:
        """How many, besides that of the text."""
        return int(self.target) + len(self.values)

    @property
    def key(self) -> str:
        """Tells what is stored in one way from what is stored in another."""
        return f"{self.target}{''.join(f' {name}' for name in self.values)}"

    @property
    def fields(self) -> tuple[str, ...]:
        """What the source must name of the records, by the names of `SourceConfig.fields`."""
        return self.made_of or self.values


def stored_value(value: Any) -> np.ndarray:
    """(n,) int32: a value of JSON, a byte an element, which every type of token ids can hold."""
    return np.frombuffer(json_bytes(value, indent=None), dtype=np.uint8).astype(np.int32)


def stored_values(values: Mapping[str, Any] | None, stored: Stored) -> tuple[np.ndarray, ...]:
    """A document's values as they are stored."""
    return tuple(stored_value((values or {}).get(name)) for name in stored.values)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[np.ndarray]:
    """The token ids of documents' texts, where an objective has not read them already."""
    if documents and documents[0].tokens is not None:
        return [document.tokens for document in documents]  # type: ignore[misc]
    return tokenizer.encode_batch([document.text for document in documents])


def value_of(stored: np.ndarray) -> Any:
    """The value that `stored_value` made an array of."""
    return parse_json(stored.astype(np.uint8).tobytes())


class Origin(NamedTuple):
    """Where a piece comes from, for people."""

    path: str
    """File or data set shard."""
    position: int
    """Position of the document in it: byte offset of a line, row, example; 0 for a whole file."""
    first_token: int
    """First token of the part in the document; -1 for the eos in front of the document."""


class Sample(NamedTuple):
    """What an objective makes one row of a batch of."""

    tokens: np.ndarray
    """(n,) int32."""
    pieces: tuple[Piece, ...]
    """The documents in it, in order."""
    split: int = -1
    """For two-part samples (sentence pairs, source and target): tokens of the first part."""
    label: int = -1
    """For sentence pairs: 0 when the second part follows the first, 1 when it is of another document."""
    values: tuple[np.ndarray, ...] = ()
    """Values of the document's other fields, as they are stored."""

    def segments(self) -> np.ndarray:
        """(n,) int32: the number of each token's document within the sample, from 0."""
        return np.repeat(np.arange(len(self.pieces), dtype=np.int32), [piece.length for piece in self.pieces])

    def digest(self, k: int) -> int:
        """The ledger's term: xxh64 over k and the document ids (uint64) and the tokens and values (uint32),
        little-endian."""
        numbers = [k, *(piece.document for piece in self.pieces)]
        # As they are: tokens are not negative, so that their bytes are those of uint32.
        tokens = self.tokens.astype("<i4", copy=False).tobytes()
        tokens += b"".join(value.astype("<i4", copy=False).tobytes() for value in self.values)
        return xxhash.xxh64_intdigest(struct.pack(f"<{len(numbers)}Q", *numbers) + tokens)


class TokenizedDocument(NamedTuple):
    """A document's tokens, and where a lane found it."""

    epoch: int
    span: int
    """Index into the lane's own spans in this epoch's order."""
    document: int
    file: int
    position: int
    tokens: np.ndarray
    """(2 + n,) int32: eos, the text's n tokens, eos; of an imported model as its conventions are. The first eos is used
    only by the first document of a lane, which has no other token to be predicted from."""
    others: tuple[np.ndarray, ...] = ()
    """What else is stored of the document, as the objective's `Stored` has it."""


class Place(NamedTuple):
    """Where the next sample of a lane begins."""

    epoch: int = 0
    span: int = 0
    position: int = -1
    """Position of the document; -1 for the first of the span."""
    token: int = 0
    """Index into the document's `tokens`."""


class Documents(Protocol):
    """An endless stream of documents that can look ahead."""

    def next(self) -> TokenizedDocument:
        """The next document."""
        ...

    def other_than(self, document: int) -> TokenizedDocument | None:
        """A document that comes soon after, with another id and some text; None where there is none near by."""
        ...


class Packer(ABC):
    """Makes samples of a stream of documents. `place` is all that is needed to go on elsewhere."""

    def __init__(self, documents: Documents, token: int) -> None:
        """The first sample starts at `token` of the first document."""
        self._documents = documents
        self._document = documents.next()
        self._token = token

    @property
    def place(self) -> Place:
        """Where the next sample begins."""
        document = self._document
        return Place(document.epoch, document.span, document.position, self._token)

    @abstractmethod
    def next(self, number: int) -> Sample:
        """The next sample; `number` is its place in the stream, for packers that draw random numbers."""

    def _piece(self, document: TokenizedDocument, start: int, length: int) -> Piece:
        return Piece(document.document, document.file, document.position, start, length)


class WindowPacker(Packer):
    """Cuts the stream document, eos, document, eos, ... into samples of `length` tokens.

    With an overlap of 1 the last token of a sample is also the first of the next, so that every token is predicted
    exactly once; with 0 every token stands in exactly one sample.
    """

    def __init__(self, documents: Documents, token: int, length: int, overlap: int, lead: bool = True) -> None:
        """`lead`: whether the first sample begins with the eos in front of the first document."""
        super().__init__(documents, token)
        self._length = length
        self._overlap = overlap
        if overlap == 0 or not lead:
            # Without an overlap that eos has nothing to be predicted from it.
            self._token = max(1, token)

    def next(self, number: int) -> Sample:
        parts: list[np.ndarray] = []
        pieces: list[Piece] = []
        missing = self._length
        while True:
            part = self._document.tokens[self._token : self._token + missing]
            size = len(part)
            if size:
                parts.append(part)
                pieces.append(self._piece(self._document, self._token, size))
            if size == missing:
                self._token += size - self._overlap
                return Sample(np.concatenate(parts), tuple(pieces))
            missing -= size
            self._document = self._documents.next()
            self._token = 1


class SentencePairPacker(Packer):
    """Pairs of neighbouring parts of a document, or of two documents (Devlin et al. 2019, appendix A.2).

    No part crosses the end of a document. A part of another document is a loan: it comes again when its turn comes.
    """

    def __init__(self, documents: Documents, token: int, room: int, short_rate: float, key: tuple[int, ...]) -> None:
        """`room`: most tokens of both parts together; `short_rate`: how often they are made shorter."""
        super().__init__(documents, token)
        self._room = room
        self._short_rate = short_rate
        self._key = key
        self._skip_finished()

    def next(self, number: int) -> Sample:
        document, start = self._document, self._token
        shorter, size, cut, swap, place = uniforms(5, "pair", *self._key, number)
        wanted = 2 + int(size * (self._room - 1)) if shorter < self._short_rate else self._room
        length = min(wanted, len(document.tokens) - 1 - start)
        first = 1 + int(cut * (length - 1))
        other = self._documents.other_than(document.document) if swap < 0.5 or length < 2 else None
        if other is None:
            self._token += length
            second, label = self._piece(document, start + first, length - first), 0 if length > first else -1
            tokens = document.tokens[start : start + length]
        else:
            self._token += first
            there = len(other.tokens) - 2
            count = min(wanted - first, there)
            begin = 1 + int(place * (there - count + 1))
            second, label = self._piece(other, begin, count), 1
            tokens = np.concatenate([document.tokens[start : start + first], other.tokens[begin : begin + count]])
        self._skip_finished()
        pieces = (self._piece(document, start, first), second)
        return Sample(tokens, pieces if second.length else pieces[:1], first, label)

    def _skip_finished(self) -> None:
        self._token = max(1, self._token)
        while self._token >= len(self._document.tokens) - 1:
            self._document = self._documents.next()
            self._token = 1


Origins = Callable[[int], tuple[Piece, ...]]
"""Gives the pieces of a sample of so many tokens."""
MakeSample = Callable[[np.ndarray, Sequence[np.ndarray], Origins], Sample]
"""Makes the sample of a text's tokens and what else is stored of its document."""


class ExamplePacker(Packer):
    """Takes documents whole. Where an objective makes several examples of a document, the `token` of a place is the
    number of the example."""

    def __init__(self, documents: Documents, token: int, make: MakeSample) -> None:
        super().__init__(documents, token)
        self._make = make
        for _ in range(token):
            self._document = documents.next()

    def _take(self) -> TokenizedDocument:
        """The next document; the one after it is then where the next sample begins."""
        document, self._document = self._document, self._documents.next()
        same = _PLACE(self._document) == _PLACE(document)
        self._token = self._token + 1 if same else 0
        return document

    def _sample(self, document: TokenizedDocument) -> Sample:
        return self._make(document.tokens[1:-1], document.others, lambda size: (self._piece(document, 1, size),))


class DocumentPacker(ExamplePacker):
    """One sample of each document: of its text and all that is stored with it."""

    def next(self, number: int) -> Sample:
        return self._sample(self._take())


_PLACE = operator.attrgetter("epoch", "span", "file", "position")


OpenPacker = Callable[[Documents, int, tuple[int, ...]], Packer]
"""Makes an objective's packer over some documents, from a token of the first one, with a key for its random numbers."""
