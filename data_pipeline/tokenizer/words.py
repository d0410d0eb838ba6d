"""Which tokens begin a new word, for masking whole words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Characters of scripts that put no space between words."""
MORE_UNSPACED = (
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Han's repetition mark and zero
    (0x3021, 0x3029),
    (0x3031, 0x303C),
    (0x31F0, 0x31FF),  # small kana
    (0xA9E0, 0xA9FE),
    (0xAA60, 0xAA7F),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1AFF0, 0x1B16F),  # old kana
)
"""Those that `begins_word` takes for letters."""
BEGINNING_LEADS = frozenset((*range(0xE2, 0xEA), *range(0xEF, 0xF5)))
"""First bytes of UTF-8 that stand almost always for punctuation, symbols, kana or Han: U+2000 to U+9FFF, and from
U+F000 on."""
ZERO_WIDTH_SPACE = "\u200b"

GAP = 0xFF
"""A byte that no text has."""

GOES_ON, AFTER_LETTERS, BEGINS = 0, 1, 2
"""First part of an edge: the token goes on with the word before it; only where that can go on; or never."""
SAME, OPEN, CLOSED = 0, 1, 2
"""Second part of an edge: whether a letter behind the token goes on with its word. `SAME`: as for the token before."""


UNKNOWN = 255
_KNOWN = np.full(0x110000, UNKNOWN, dtype=np.uint8)
"""Edges of characters, as `3 * first + last`, once they were asked for."""
_LEADS = np.isin(np.arange(256), list(BEGINNING_LEADS))


class Edge(NamedTuple):
    """What a token does to the words on its two sides."""

    first: int
    last: int


def edges_of(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """(N, 2) int8: the edges of N tokens that follow each other.

    Words are those of BERT's whole-word masking (Devlin et al. 2019, May 2019), where Chinese characters and
    punctuation marks are words by themselves: here every character of a script without spaces, every punctuation mark
    and every symbol. So a letter or digit goes on with letters, digits and white space before it, and begins a word
    behind anything else. A combining mark or a format character such as the zero-width joiner belongs to the character
    before it, and a character that is cut into several tokens to the first of them; one of which there is only a part
    is told by its first byte.

    Args:
        data: (B,) uint8, the UTF-8 bytes that the tokens stand for, with `GAP` where one does not follow the other.
        starts, stops: (N,) each token's place in them; empty tokens have none.
    """
    codes = _codes(data)
    edges = np.stack([codes // 3, codes % 3], axis=1)
    told = np.maximum.accumulate(np.where(edges[:, 1] == SAME, -1, np.arange(len(data))))
    found = np.empty((len(starts), 2), dtype=np.int8)
    found[:] = GOES_ON, SAME
    filled = np.flatnonzero(stops > starts)
    first, last = starts[filled], told[stops[filled] - 1]
    found[filled, 0] = edges[first, 0]
    found[filled, 1] = np.where(last >= first, edges[last, 1], SAME)
    return found


def _codes(data: np.ndarray) -> np.ndarray:
    """(B,) the edge of the character that begins at each byte, as `3 * first + last`."""
    one, two, three, four = (np.append(data, [GAP] * 3)[i : len(data) + i].astype(np.int32) for i in range(4))
    tails = [(byte & 0xC0) == 0x80 for byte in (two, three, four)]
    low = [byte & 0x3F for byte in (two, three, four)]
    points = np.full(len(data), -1)
    for least, below, mask, size in ((0xC0, 0xE0, 0x1F, 1), (0xE0, 0xF0, 0x0F, 2), (0xF0, 0xF8, 0x07, 3)):
        whole = (one >= least) & (one < below) & np.logical_and.reduce(tails[:size])
        value = one & mask
        for bits in low[:size]:
            value = value << 6 | bits
        points = np.where(whole & (value < len(_KNOWN)), value, points)
    points = np.where(one < 0x80, one, points)
    whole = points >= 0
    for point in np.unique(points[whole & (_KNOWN[points] == UNKNOWN)]).tolist():
        first, last = _edge_of_character(chr(point))
        _KNOWN[point] = 3 * first + last
    parts = np.where(_LEADS[one], 3 * BEGINS + CLOSED, 3 * AFTER_LETTERS + OPEN)
    parts = np.where((one >= 0xC0) & (one != GAP), parts, 3 * GOES_ON + SAME)
    return np.where(whole, _KNOWN[points], parts).astype(np.int8)


def _edge_of_character(character: str) -> Edge:
    category = unicodedata.category(character)
    if character.isspace() or character == ZERO_WIDTH_SPACE:
        return Edge(BEGINS, OPEN)
    if category[0] == "M" or category == "Cf":
        return Edge(GOES_ON, SAME)
    if category[0] in "LN" and not _within(character, UNSPACED + MORE_UNSPACED):
        return Edge(AFTER_LETTERS, OPEN)
    return Edge(BEGINS, CLOSED)


class Words:
    """Which tokens of a vocabulary begin words."""

    def __init__(self, texts: Sequence[bytes | bool], *, alone: bool = False) -> None:
        """What decides it.

        Args:
            texts: of each token the UTF-8 bytes that it stands for, or whether it begins a word, where it is no text or
                the vocabulary marks it.
            alone: by the first rules, which look at nothing before a token.
        """
        written = [b"" if isinstance(text, bool) else text for text in texts]
        self._sizes = np.array([len(text) for text in written])
        self._starts = np.cumsum(self._sizes + 1) - self._sizes - 1
        self._bytes = np.frombuffer(bytes([GAP]).join([*written, b""]), np.uint8)
        self._edges = edges_of(self._bytes, self._starts, self._starts + self._sizes)
        self._is_cut = np.zeros(len(texts), dtype=bool)
        for token, text in enumerate(texts):
            if isinstance(text, bool):
                self._edges[token] = BEGINS if text else GOES_ON, CLOSED
            elif alone:
                self._edges[token] = BEGINS if begins_word(text) else GOES_ON, SAME
            else:
                self._is_cut[token] = not _is_whole(text)

    def begin(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: which of T tokens that follow each other begin a word."""
        edges = self._edges[ids]
        places = np.flatnonzero(self._is_cut[ids])
        if places.size:
            edges[places] = self._edges_of_cut(ids[places], np.append(np.diff(places) > 1, True))
        first, last = edges.T
        told = np.maximum.accumulate(np.where(last == SAME, -1, np.arange(len(last))))
        closed = (last[told] == CLOSED) & (told >= 0)
        found: np.ndarray = first == BEGINS
        found[1:] |= (first[1:] == AFTER_LETTERS) & closed[:-1]
        return found

    def _edges_of_cut(self, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(N, 2) of tokens that are no whole characters; `ends` of runs of them that follow each other."""
        sizes = self._sizes[ids]
        starts = np.cumsum(sizes + ends) - sizes - ends
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        data = np.full(starts[-1] + sizes[-1] + 1, GAP, dtype=np.uint8)
        data[np.repeat(starts, sizes) + within] = self._bytes[np.repeat(self._starts[ids], sizes) + within]
        return edges_of(data, starts, starts + sizes)


def begins_word(token: bytes) -> bool:
    """Whether a token began a word by the first rules, which looked at nothing before it: unless it starts with a
    letter, digit or combining mark, and always where that is of a script without spaces."""
    if not token:
        return False
    lead = token[0]
    length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    try:
        character = token[:length].decode()
    except UnicodeDecodeError:
        return lead in BEGINNING_LEADS
    return _within(character, UNSPACED) or unicodedata.category(character)[0] not in "LNM"


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
