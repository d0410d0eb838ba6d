"""What a held-out figure is compared with: a general compressor and a model that knows only frequencies."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.base.errors import UserError

_BLOCK = 1 << 20
"""Tokens counted at a time: large enough that the vocabulary-sized result of np.bincount costs little."""

_NO_TEXT = "there is no held-out text to compare on; set data.holdout above 0 or name files under data.evaluation"


@dataclass(frozen=True)
class Baselines:
    """Bits per UTF-8 byte of the held-out documents under each baseline."""

    xz: float
    """`xz_bits_per_byte` of them."""
    unigram: float
    """`unigram_bits_per_byte` of them."""

    def as_json(self) -> dict[str, dict[str, float]]:
        """The form in summary.json."""
        return {"xz": {"bits_per_byte": self.xz}, "unigram": {"bits_per_byte": self.unigram}}


def xz_bits_per_byte(documents: Iterable[str]) -> float:
    """Bits per byte that `xz -9e` needs for the documents, joined without separators, in UTF-8.

    The compressor starts from nothing, as if the text were all it ever saw. Documents are read once, one at a time.

    Raises:
        UserError: the documents hold no text.
    """
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = compressed = 0
    for document in documents:
        data = document.encode("utf-8")
        size += len(data)
        compressed += len(compressor.compress(data))
    compressed += len(compressor.flush())
    if size == 0:
        raise UserError(_NO_TEXT)
    return 8 * compressed / size


def unigram_bits_per_byte(
    training: Iterable[Sequence[int] | np.ndarray],
    heldout: Iterable[Sequence[int] | np.ndarray],
    vocab_size: int,
    heldout_bytes: int,
) -> float:
    """Bits per byte of the held-out tokens under add-one frequencies of the training tokens.

    With c(t) occurrences of token t among N training tokens, a held-out token t costs
    -log2((c(t) + 1) / (N + vocab_size)) bits (Laplace's rule of succession). Tokens are counted as they are given:
    a document that ends with an end-of-document token, which a language model predicts too, holds it on both sides.

    Args:
        training: token ids in [0, vocab_size), a document at a time, in any number of documents.
        heldout: token ids in [0, vocab_size), likewise.
        vocab_size: tokens of the tokenizer, without padding.
        heldout_bytes: length of the held-out text in UTF-8, in bytes.

    Raises:
        UserError: there is no held-out text.
        ValueError: a token id lies outside the vocabulary.
    """
    if heldout_bytes <= 0:
        raise UserError(_NO_TEXT)
    counts = _count_tokens(training, vocab_size)
    cost = np.log2(counts.sum() + vocab_size) - np.log2(counts + 1)
    return float(_count_tokens(heldout, vocab_size) @ cost) / heldout_bytes


def _count_tokens(documents: Iterable[Sequence[int] | np.ndarray], vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64: occurrences of each token."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for tokens in _blocks(documents):
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            outside = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
            raise ValueError(f"token {outside} lies outside a vocabulary of {vocab_size} tokens")
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def _blocks(documents: Iterable[Sequence[int] | np.ndarray]) -> Iterator[np.ndarray]:
    """The tokens of all documents, joined to (N,) int64 arrays of about _BLOCK."""
    held: list[np.ndarray] = []
    size = 0
    for document in documents:
        held.append(np.asarray(document, dtype=np.int64))
        size += len(document)
        if size >= _BLOCK:
            yield np.concatenate(held)
            held, size = [], 0
    if size:
        yield np.concatenate(held)
