"""Tokens of a text none of which is part of two units: words or characters that are labelled each for itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.tokenizer.base import Tokenizer
from data_pipeline.tokenizer.words import MORE_UNSPACED, UNSPACED

_JOINER = "\u200d"
_REGIONAL = range(0x1F1E6, 0x1F200)
_SKIN = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)


class UnitTokens(NamedTuple):
    """The tokens of a text, and the units that they belong to."""

    ids: np.ndarray
    """(T,) int32."""
    spans: np.ndarray
    """(T, 2) int64: [start, end) in the UTF-8 bytes of the text."""
    units: np.ndarray
    """(T,) int64: the unit that each is a part of; -1 where it is a part of none."""
    firsts: np.ndarray
    """(U,) int64: the first token of each unit; -1 where the unit becomes no token."""


def encode_units(tokenizer: Tokenizer, text: str, units: Sequence[tuple[int, int]]) -> UnitTokens:
    """The tokens of a text as `encode` gives them, but for those that would be parts of several units: there each unit
    is tokenised for itself, with what stands between it and the one before.

    Args:
        units: [start, end) in characters, in order and apart.

    Raises:
        UserError: the tokenizer changes the text in a way that nobody can follow.
    """
    ids, spans = tokenizer.encode_with_spans(text)
    before = _bytes_before(text)
    edges = before[np.asarray(units, dtype=np.int64).reshape(-1, 2)]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    place, end = 0, 0
    for low, high in _shared(spans, edges, before):
        kept = np.flatnonzero((spans[:, 0] < high) & (spans[:, 1] > low) & (spans[:, 0] < spans[:, 1]))
        parts.append((ids[place : kept[0]], spans[place : kept[0]]))
        parts += _one_by_one(tokenizer, text.encode(), edges, low, high)
        place, end = int(kept[-1]) + 1, high
    parts.append((ids[place:], spans[place:]))
    assert end <= before[-1]
    ids = np.concatenate([part[0] for part in parts]).astype(np.int32)
    spans = np.concatenate([part[1] for part in parts]).reshape(-1, 2)
    owners = _owners(spans, edges)
    firsts = np.full(len(edges), -1, dtype=np.int64)
    owned = np.flatnonzero(owners >= 0)
    found, first = np.unique(owners[owned], return_index=True)
    firsts[found] = owned[first]
    return UnitTokens(ids, spans, owners, firsts)


def _bytes_before(text: str) -> np.ndarray:
    """(n + 1,) int64: UTF-8 bytes before each character, and of the whole text."""
    sizes = [len(character.encode()) for character in text]
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _overlapped(spans: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T,) first and last unit that each token covers bytes of; the last is below the first where there is none."""
    full = np.flatnonzero(edges[:, 0] < edges[:, 1])
    first = np.searchsorted(edges[full, 1], spans[:, 0], "right")
    last = np.searchsorted(edges[full, 0], spans[:, 1], "left") - 1
    empty = spans[:, 0] >= spans[:, 1]
    first, last = np.where(empty, 0, first), np.where(empty, -1, last)
    numbers = np.append(full, -1)
    known = first <= last
    return np.where(known, numbers[np.minimum(first, len(full))], 0), np.where(known, numbers[last], -1)


def _owners(spans: np.ndarray, edges: np.ndarray) -> np.ndarray:
    first, last = _overlapped(spans, edges)
    return np.where(last >= first, first, -1)


def _shared(spans: np.ndarray, edges: np.ndarray, before: np.ndarray) -> Iterator[tuple[int, int]]:
    """The stretches of bytes, in order, apart and at whole characters, in which tokens are parts of several units; each
    holds whole tokens and whole units."""
    first, last = _overlapped(spans, edges)
    done = 0
    for token in np.flatnonzero(first < last):
        if spans[token, 0] < done:
            continue
        low, high = int(spans[token, 0]), int(spans[token, 1])
        while True:
            touched = (spans[:, 0] < high) & (spans[:, 1] > low) & (spans[:, 0] < spans[:, 1])
            inside = (edges[:, 0] < high) & (edges[:, 1] > low)
            lower = min(low, *spans[touched, 0].tolist(), *edges[inside, 0].tolist())
            higher = max(high, *spans[touched, 1].tolist(), *edges[inside, 1].tolist())
            lower = int(before[np.searchsorted(before, lower, "right") - 1])
            higher = int(before[np.searchsorted(before, higher, "left")])
            if (lower, higher) == (low, high):
                break
            low, high = lower, higher
        done = high
        yield low, high


def _one_by_one(
    tokenizer: Tokenizer, data: bytes, edges: np.ndarray, low: int, high: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and spans of the units between two bytes, each with what stands before it, and the last one with the rest."""
    stops = [int(stop) for start, stop in edges if low <= start < stop <= high]
    stops[-1] = high
    for start, stop in zip([low, *stops], stops, strict=False):
        ids, spans = tokenizer.encode_with_spans(data[start:stop].decode())
        real = spans[:, 0] < spans[:, 1]  # without a space that the tokenizer puts in front of a text
        yield ids[real], spans[real] + start


def characters(text: str) -> list[tuple[int, int]]:
    """[start, end) of each character that is no white space, as readers see it: with its marks, and emoji with all that
    they are joined of (much of Unicode Standard Annex 29)."""
    return [(start, end) for start, end in _clusters(text) if not text[start].isspace()]


def words(text: str) -> list[tuple[int, int]]:
    """[start, end) of each run of letters and digits, and of each other sign; of scripts without spaces between words,
    such as Han, of each character."""
    found: list[tuple[int, int]] = []
    goes_on = False
    for start, end in _clusters(text):
        letter = unicodedata.category(text[start])[0] in "LN" and not _is_unspaced(text[start])
        if letter and goes_on:
            found[-1] = found[-1][0], end
        elif not text[start].isspace():
            found.append((start, end))
        goes_on = letter
    return found


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in (*UNSPACED, *MORE_UNSPACED))


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    start, flags = 0, 0
    for place in range(1, len(text) + 1):
        if place < len(text):
            code, last = ord(text[place]), text[place - 1]
            flag = code in _REGIONAL and ord(last) in _REGIONAL and flags % 2 == 0
            extends = unicodedata.category(text[place])[0] == "M" or text[place] == _JOINER
            joined = last == _JOINER and place - 1 > start
            if (extends and not last.isspace()) or joined or code in _SKIN or code in _TAGS or flag:
                flags += flag
                continue
        yield start, place
        start, flags = place, 0
