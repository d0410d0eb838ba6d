"""The .bin/.idx pair of Megatron-LM and GPT-NeoX: what stands where, and a memory-mapped reader that checks it.

PREFIX.bin holds raw token ids. PREFIX.idx, little-endian: `MMIDIDX\\0\\0`, uint64 version 1, uint8 dtype code,
uint64 number of sequences n, uint64 number of document bounds m, int32 lengths[n] in tokens, int64 pointers[n] in
bytes, int64 document bounds[m] in sequences (the first 0, the last n), and for multimodal sets int8 modes[n].
Layout: `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM and `megatron/data/indexed_dataset.py` of
EleutherAI/gpt-neox. The two give different floats to the codes 6 and 7, which no token ids have.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.sources.first_bytes import require_contents_at

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, sequences, document bounds: 34 bytes."""
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Codes of integers, which token ids are."""
FLOATS = (6, 7)
SMALL_VOCABULARY = 65500
"""Vocabularies below this are stored as uint16 (Megatron's bound)."""
BLOCK = 1 << 20
"""Index entries checked at a time."""
COARSE = 64
"""One document start in so many is kept in memory, to find the document of a token with few page accesses."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that Megatron stores the ids of a vocabulary in: uint16 below 65,500 tokens, else int32."""
    return np.dtype(np.uint16 if vocab_size < SMALL_VOCABULARY else np.int32)


def bin_path(prefix: str | Path) -> Path:
    """Where the tokens of a prefix are."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Where the index of a prefix is."""
    return Path(f"{prefix}.idx")


def places_path(prefix: str | Path) -> Path:
    """Where the origins of a prefix's documents are, if it was written with them: int64 pairs (file, position)."""
    return Path(f"{prefix}.places")


class Index(NamedTuple):
    """What an .idx file says. The arrays are unaligned views of the mapped file, so never search them whole."""

    dtype: np.dtype
    """Type of the token ids."""
    lengths: np.ndarray
    """(n,) int32: tokens of each sequence."""
    pointers: np.ndarray
    """(n,) int64: byte of the .bin file at which each sequence begins."""
    bounds: np.ndarray | None
    """(documents + 1,) int64: document d is sequences bounds[d] to bounds[d + 1]; None: one sequence a document."""
    tokens: int
    """Tokens of all sequences."""


class IndexedDataset:
    """The documents of one .bin/.idx prefix, memory-mapped. Opening checks the whole index and the size of the .bin.

    Documents of several sequences (sentence-split sets) are read as one, since their tokens lie together.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Maps both files; `prefix` may carry the ending .bin or .idx.

        Raises:
            UserError: a file that is missing, unreadable, cut short, a pointer to the file that is meant, or in
                contradiction to itself or to the other.
        """
        self.prefix = str(prefix).removesuffix(".bin").removesuffix(".idx")
        for path in (idx_path(self.prefix), bin_path(self.prefix)):
            require_contents_at(path)
        self._index = read_index(idx_path(self.prefix))
        self.dtype = self._index.dtype
        """Type of the token ids in the file."""
        bounds = self._index.bounds
        self.document_count = len(self._index.lengths) if bounds is None else len(bounds) - 1
        """Number of documents, empty ones included."""
        self.tokens = self._map_tokens()
        """(tokens,) array of `dtype`: all documents one after the other."""
        self.places = self._map_places()
        """(documents, 2) int64: source file number and position of each document; None where they were not kept."""
        self._coarse = self.starts(np.arange(0, self.document_count, COARSE))

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """First token of each document, an int64 array like `documents`; `document_count` gives the end of all."""
        index = self._index
        sequences = documents if index.bounds is None else index.bounds[documents]
        inside = sequences < len(index.lengths)
        if inside.all():
            return index.pointers[sequences] // self.dtype.itemsize
        starts = np.full(sequences.shape, index.tokens, dtype=np.int64)
        starts[inside] = index.pointers[sequences[inside]] // self.dtype.itemsize
        return starts

    def lengths(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64: tokens of the documents start to stop - 1."""
        return np.diff(self.starts(np.arange(start, stop + 1)))

    def document(self, number: int) -> np.ndarray:
        """The tokens of a document: a view of the file, not to be written to."""
        start, stop = self.starts(np.array([number, number + 1]))
        return self.tokens[start:stop]

    def documents_at(self, tokens: np.ndarray) -> np.ndarray:
        """Number of the document that each token (by its place in `tokens`) belongs to; int64 of the same shape."""
        low = (np.searchsorted(self._coarse, tokens, "right") - 1) * COARSE
        high = np.minimum(low + COARSE, self.document_count) - 1
        for _ in range(COARSE.bit_length()):
            middle = (low + high + 1) >> 1
            before = self.starts(middle) <= tokens
            low, high = np.where(before, middle, low), np.where(before, high, middle - 1)
            if (low == high).all():
                break
        return low

    @property
    def sequence_count(self) -> int:
        """Number of sequences: of documents, unless they were split into sentences."""
        return len(self._index.lengths)

    def index_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The index a million entries at a time: lengths of sequences, and the sequence after each document's last."""
        index = self._index
        for first in range(0, max(self.sequence_count, self.document_count), BLOCK):
            stop = min(first + BLOCK, self.document_count)
            ends = np.arange(first, stop) + 1 if index.bounds is None else index.bounds[first + 1 : stop + 1]
            yield index.lengths[first : first + BLOCK], ends

    def _map_tokens(self) -> np.ndarray:
        path, need = bin_path(self.prefix), self._index.tokens * self.dtype.itemsize
        size = _size(path)
        if size != need:
            raise UserError(
                f"{path} has {size} bytes, but {idx_path(self.prefix)} describes {need}"
                f" ({self._index.tokens} tokens of {self.dtype}); restore both files, or prepare them again"
            )
        return _map(path, self.dtype)

    def _map_places(self) -> np.ndarray | None:
        path, need = places_path(self.prefix), 16 * self.document_count
        if not path.exists():
            return None
        if _size(path) != need:
            raise UserError(
                f"{path} has {_size(path)} bytes, but {idx_path(self.prefix)} has {self.document_count} documents,"
                f" which need {need}; restore it, or prepare it again"
            )
        return _map(path, np.dtype("<i8")).reshape(-1, 2)


def read_index(path: Path) -> Index:
    """Map an .idx file and check all of it, a million entries at a time.

    Raises:
        UserError: names the first thing that is wrong, with what is there and what should be.
    """
    size = _size(path)
    if size < HEADER.size:
        raise UserError(f"{path} has {size} bytes, but an index has at least {HEADER.size}; restore it")
    mapped = _map(path, np.dtype(np.uint8))
    magic, version, code, count, bound_count = HEADER.unpack(mapped[: HEADER.size].tobytes())
    _check_header(path, magic, version, code)
    need = HEADER.size + 12 * count + 8 * bound_count
    if size not in (need, need + count):
        raise UserError(
            f"{path} has {size} bytes, but its header's {count} sequences and {bound_count} document bounds need"
            f" {need}; restore it, or prepare it again"
        )
    at = HEADER.size
    lengths = np.frombuffer(mapped, "<i4", count, at)
    pointers = np.frombuffer(mapped, "<i8", count, at + 4 * count)
    bounds = np.frombuffer(mapped, "<i8", bound_count, at + 12 * count)
    if count and size == need + count and mapped[need:].any():
        mode = int(mapped[need:].max())
        raise UserError(f"{path} has sequences of mode {mode}, but text has mode 0; name a set of text alone")
    dtype = np.dtype(DTYPES[code])
    tokens = _check_sequences(path, lengths, pointers, dtype.itemsize)
    return Index(dtype, lengths, pointers, _check_bounds(path, bounds, count), tokens)


def _check_header(path: Path, magic: bytes, version: int, code: int) -> None:
    if magic != MAGIC:
        old = " (fairseq's older format; write it again with --dataset-impl mmap)" if magic[:6] == b"TNTIDX" else ""
        raise UserError(f"{path} begins with {magic!r}{old}, but a Megatron index with {MAGIC!r}; name another file")
    if version != VERSION:
        raise UserError(f"{path} has version {version}, but only version {VERSION} is known; restore or convert it")
    if code not in DTYPES:
        known = ", ".join(f"{number} {np.dtype(dtype)}" for number, dtype in DTYPES.items())
        kind = "a floating-point type" if code in FLOATS else "none"
        raise UserError(f"{path} has dtype code {code} ({kind}), but token ids have one of {known}; restore it")


def _check_sequences(path: Path, lengths: np.ndarray, pointers: np.ndarray, itemsize: int) -> int:
    """Lengths must not be negative, and each sequence begins where the one before ends; returns the tokens of all."""
    total = 0
    for first in range(0, len(lengths), BLOCK):
        block = lengths[first : first + BLOCK].astype(np.int64)
        if (block < 0).any():
            bad = int(np.argmax(block < 0))
            raise UserError(
                f"{path} gives sequence {first + bad} the length {block[bad]}, below 0; restore it, or prepare it again"
            )
        ends = np.cumsum(block)
        due = (total + ends - block) * itemsize
        wrong = pointers[first : first + BLOCK] != due
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise UserError(
                f"{path} has sequence {first + bad} at byte {pointers[first + bad]}, but the ones before it end at byte"
                f" {due[bad]}; restore it, or prepare it again"
            )
        total += int(ends[-1])
    return total


def _check_bounds(path: Path, bounds: np.ndarray, count: int) -> np.ndarray | None:
    """The document bounds, or None where every sequence is a document."""
    # GPT-NeoX and older versions of Megatron lose the bounds of sets that they merge, and leave the first alone.
    if len(bounds) <= 1 and (len(bounds) == 0 or bounds[0] == 0):
        return None
    fix = "restore it, or prepare it again"
    if bounds[0] != 0:
        raise UserError(f"{path} has its first document begin at sequence {bounds[0]}, not 0; {fix}")
    if bounds[-1] != count:
        raise UserError(f"{path} has its last document end at sequence {bounds[-1]}, but has {count} sequences; {fix}")
    single = len(bounds) == count + 1
    for first in range(0, len(bounds) - 1, BLOCK):
        steps = np.diff(bounds[first : first + BLOCK + 1])
        if (steps < 0).any():
            bad = first + int(np.argmax(steps < 0))
            raise UserError(
                f"{path} has document {bad} begin at sequence {bounds[bad]} and end at {bounds[bad + 1]}, before it;"
                f" {fix}"
            )
        single = single and bool((steps == 1).all())
    return None if single else bounds


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a prefix that has a .bin and an .idx") from None


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        # An empty file cannot be mapped.
        return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if _size(path) else np.empty(0, dtype=dtype)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from None
