"""Documents that repeat earlier ones, found in three passes that fit a parallel and restartable `prepare`.

1. `Signer.sign` makes a signature of each document of a part (any share of the corpus), on any process.
2. `find_duplicates` compares the signatures of all parts, in the order of the corpus, on one process: what it finds
   does not depend on who signed which part, so that any process may repeat it.
3. `without_duplicates` leaves out what was found in a part.

A signature takes 28 bytes and, with near-duplicates, 4 more per permutation (540 by default). Pass 2 maps the
signatures from their files; in memory it holds about 150 bytes a document, and with 128 permutations 6 kB for each one
that shares a band of hash values with another and is no duplicate of an earlier one.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from data_pipeline.base.errors import UserError
from data_pipeline.base.unicode import normalize
from data_pipeline.cleaning.config import DeduplicationConfig, NearDeduplication
from data_pipeline.cleaning.extra import require
from data_pipeline.cleaning.text import EXAMINED, HAN

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from data_pipeline.document import Document

DUPLICATES = np.dtype([("file", "<i4"), ("position", "<i8"), ("near", "?")])
"""What `find_duplicates` says of a document: `Document.file`, `Document.position`, and whether it is a near-duplicate
(else an exact one)."""
MOST_CANDIDATES = 1000
"""A document that shares a band with so many documents, none of which is like it, stays but is not compared with later
ones; without this limit, a million pages from one template would take a million times a million comparisons."""

NO_WORDS = np.uint32(0xFFFFFFFF)
"""Every MinHash value of a text without words."""

_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: the usual multiplicative hash
_SHINGLES_AT_ONCE = 1 << 14
# Missed duplicates weigh nine times what needless comparisons do: those are settled by the whole signatures.
_LSH_WEIGHTS = (0.1, 0.9)


def refuse_deduplication_of_a_stream(config: DataConfig) -> None:
    """Raises UserError when the config asks for deduplication, which a stream of raw text cannot give."""
    if config.deduplication is not None:
        raise UserError(
            "data.deduplication needs the whole corpus, of which training from raw text sees a part at a time; run"
            " llmscale data prepare with this config and train on its output, or remove data.deduplication"
        )


def signature_type(config: DeduplicationConfig) -> np.dtype:
    """One signature: `file` and `position` of the document, `exact` (128-bit hash of the normalised text, or zeros),
    and with near-duplicates `near` (MinHash values, uint32; all of them 2^32 - 1 for a text without words)."""
    fields: list[Any] = [("file", "<i4"), ("position", "<i8"), ("exact", "<u8", (2,))]
    if config.near:
        fields.append(("near", "<u4", (config.near.permutations,)))
    return np.dtype(fields)


class Signer:
    """Pass 1. Keeps no state between documents, so every process makes its own."""

    def __init__(self, config: DeduplicationConfig) -> None:
        """Raises UserError when near-duplicates are asked for and datasketch is not installed."""
        self._config = config
        self._type = signature_type(config)
        self._minhash = _MinHasher(config.near) if config.near else None

    def sign(self, documents: Iterable[Document]) -> np.ndarray:
        """Signatures of documents, in their order: (documents,) of `signature_type`."""
        rows = [self._sign(document) for document in documents]
        return np.array(rows, dtype=self._type)

    def _sign(self, document: Document) -> tuple[Any, ...]:
        texts = [document.text, document.target or ""]
        hashed = xxhash.xxh3_128_intdigest(_bytes("\0".join(map(_normalised, texts)))) if self._config.exact else 0
        row = (document.file, document.position, (hashed >> 64, hashed & (1 << 64) - 1))
        return row if self._minhash is None else (*row, self._minhash.signature(" ".join(texts)))


def find_duplicates(parts: Sequence[np.ndarray | Path], config: DeduplicationConfig) -> list[np.ndarray]:
    """Pass 2: the documents to leave out, for each part.

    The first of several equal documents stays. Then each document is compared with those before it that stay: it is a
    near-duplicate when the signatures estimate a Jaccard similarity of at least `near.threshold`.

    Args:
        parts: signatures in the order of the corpus, or `.npy` files of them.
        config: that of pass 1.

    Returns:
        For each part an array of `DUPLICATES`, in the order of its documents.
    """
    tables = [part if isinstance(part, np.ndarray) else np.load(part, mmap_mode="r") for part in parts]
    count = sum(map(len, tables))
    exact, near = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    if config.exact:
        exact = _repeated(np.concatenate([table["exact"] for table in tables])) if count else exact
    if config.near:
        near = _near_duplicates([table["near"] for table in tables], ~exact, config.near)
    found, start = [], 0
    for table in tables:
        mine = np.flatnonzero((exact | near)[start : start + len(table)])
        duplicates = np.empty(len(mine), DUPLICATES)
        duplicates["file"], duplicates["position"] = table["file"][mine], table["position"][mine]
        duplicates["near"] = near[start + mine]
        found.append(duplicates)
        start += len(table)
    return found


def without_duplicates(
    documents: Iterable[Document], duplicates: np.ndarray, dropped: Counter[str]
) -> Iterator[Document]:
    """Pass 3: the documents of a part that stay.

    Args:
        documents: those that pass 1 saw, or any share of them.
        duplicates: what pass 2 found in the part.
        dropped: gets the number of documents left out, by reason.
    """
    near = {(int(row["file"]), int(row["position"])): bool(row["near"]) for row in duplicates}
    for document in documents:
        place = (document.file, document.position)
        if place in near:
            dropped["near duplicate" if near[place] else "exact duplicate"] += 1
        else:
            yield document


class _MinHasher:
    """MinHash signatures of the set of shingles of a text (Broder 1997), by datasketch."""

    def __init__(self, config: NearDeduplication) -> None:
        self._library = require("datasketch", "data.deduplication.near")
        self._config = config
        self._scheme = {"scheme": "affine32", "hashfunc": int}
        self._permutations = self._library.MinHash(config.permutations, **self._scheme).permutations

    def signature(self, text: str) -> np.ndarray:
        minhash = self._library.MinHash(self._config.permutations, permutations=self._permutations, **self._scheme)
        shingles = shingle_hashes(text, self._config.ngram)
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):  # bounds the memory for huge documents
            minhash.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        return minhash.hashvalues


def shingle_hashes(text: str, ngram: int) -> np.ndarray:
    """32-bit hashes of the runs of `ngram` words of a text, each once, ascending: uint32 (shingles,).

    Words are letters and digits in a row, or one Chinese character, after NFKC and case folding; punctuation is left
    out. A text with fewer words is one shingle. Of a very long text the first million characters count.
    """
    words = _WORD.findall(normalize("NFKC", text[:EXAMINED]).casefold())
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    width = min(ngram, len(words))
    shingles = np.zeros(len(words) - width + 1 if words else 0, np.uint64)
    for place in range(width):
        shingles = shingles * _MULTIPLIER + hashes[place : place + len(shingles)]
    return np.unique((_mixed(shingles) >> np.uint64(32)).astype(np.uint32))


@functools.lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(_bytes(word))


def _mixed(hashes: np.ndarray) -> np.ndarray:
    return (hashes ^ (hashes >> np.uint64(29))) * _MULTIPLIER


def _normalised(text: str) -> str:
    return " ".join(normalize("NFC", text).split())


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Which rows of (documents, 2) occurred before."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in their order
    ordered = hashes[order]
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated


def _near_duplicates(signatures: list[np.ndarray], eligible: np.ndarray, config: NearDeduplication) -> np.ndarray:
    """Which documents are like an earlier one that stays, among those where `eligible` is true.

    Args:
        signatures: for each part (documents, permutations).
        eligible: (all documents,).
    """
    library = require("datasketch", "data.deduplication.near")
    index = library.MinHashLSH(config.threshold, config.permutations, weights=_LSH_WEIGHTS)
    near = np.zeros(len(eligible), dtype=bool)
    staying: dict[int, np.ndarray] = {}
    for number, signature in _with_company(signatures, eligible, index.hashranges):
        minhash = library.LeanMinHash(seed=1, hashvalues=signature, scheme="affine32")
        candidates = index.query(minhash)
        if candidates:
            same = (np.array([staying[other] for other in candidates]) == signature).sum(axis=1)
            near[number] = same.max() >= config.threshold * config.permutations
        if not near[number] and len(candidates) < MOST_CANDIDATES:
            staying[number] = signature
            index.insert(number, minhash, check_duplication=False)
    return near


def _with_company(
    signatures: list[np.ndarray], eligible: np.ndarray, bands: list[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and signature of each eligible document that shares a band with another one: most documents are unique,
    and need not enter the index."""
    if not len(eligible):
        return
    # Of a text with words, four hash values in a row are this one with probability 2^-128.
    worded = np.concatenate([(part[:, :4] != NO_WORDS).any(axis=1) for part in signatures])
    numbers = np.flatnonzero(eligible & worded)
    shared = np.zeros(len(numbers), dtype=bool)
    for start, stop in bands:
        keys = np.concatenate([_band_keys(part[:, start:stop]) for part in signatures])[numbers]
        kinds, counts = np.unique(keys, return_inverse=True, return_counts=True)[1:]
        shared |= counts[kinds] > 1
    offsets = np.cumsum([0, *map(len, signatures)])
    for number in numbers[shared].tolist():
        part = int(np.searchsorted(offsets, number, "right")) - 1
        yield number, np.array(signatures[part][number - offsets[part]])


def _band_keys(band: np.ndarray) -> np.ndarray:
    """64-bit hashes of (documents, hash values); two that collide only cause a needless look-up."""
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = _mixed(keys ^ column)
    return keys
