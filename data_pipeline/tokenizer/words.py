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

GOES_ON, AFTER_LETTERS, BEGINS = 0, 1, 2
"""First part of an edge: the token goes on with the word before it; only where that can go on; or never."""
SAME, OPEN, CLOSED = 0, 1, 2
"""Second part of an edge: whether a letter behind the token goes on with its word. `SAME`: as for the token before."""


class Edge(NamedTuple):
    """What a token does to the words on its two sides."""

    first: int
    last: int


def edges_of(tokens: Sequence[bytes]) -> list[Edge]:
    """The edges of tokens that follow each other, as the UTF-8 bytes they stand for.

    Words are those of BERT's whole-word masking (Devlin et al. 2019, May 2019), where Chinese characters and
    punctuation marks are words by themselves: here every character of a script without spaces, every punctuation mark
    and every symbol. So a letter or digit goes on with letters, digits and white space before it, and begins a word
    behind anything else. A combining mark or a format character such as the zero-width joiner belongs to the character
    before it, and a character that is cut into several tokens to the first of them; one of which there is only a part
    is told by its first byte.
    """
    found: dict[int, Edge] = {}
    text, place = b"".join(tokens), 0
    while place < len(text):
        lead = text[place]
        length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        try:
            found[place] = _edge_of_character(text[place : place + length].decode())
        except UnicodeDecodeError:
            if lead >= 0xC0:
                found[place] = Edge(BEGINS, CLOSED) if lead in BEGINNING_LEADS else Edge(AFTER_LETTERS, OPEN)
        place += length
    edges, start = [], 0
    for token in tokens:
        places = range(start, start + len(token))
        told = (found[place].last for place in reversed(places) if place in found and found[place].last != SAME)
        first = found[start].first if token and start in found else GOES_ON
        edges.append(Edge(first, next(told, SAME)))
        start += len(token)
    return edges


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
        self._cut: dict[int, bytes] = {}
        self._edges = np.empty((len(texts), 2), dtype=np.int8)
        for token, text in enumerate(texts):
            if isinstance(text, bool):
                edge = Edge(BEGINS if text else GOES_ON, CLOSED)
            elif alone:
                edge = Edge(BEGINS if begins_word(text) else GOES_ON, SAME)
            else:
                edge = edges_of([text])[0]
                if not _is_whole(text):
                    self._cut[token] = text
            self._edges[token] = edge
        self._is_cut = np.zeros(len(texts), dtype=bool)
        self._is_cut[list(self._cut)] = True

    def begin(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: which of T tokens that follow each other begin a word."""
        edges = self._edges[ids]
        places = np.flatnonzero(self._is_cut[ids])
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if places.size else []
        for run in runs:
            edges[run] = edges_of([self._cut[token] for token in ids[run].tolist()])
        first, last = edges.T
        told = np.maximum.accumulate(np.where(last == SAME, -1, np.arange(len(last))))
        closed = (last[told] == CLOSED) & (told >= 0)
        found: np.ndarray = first == BEGINS
        found[1:] |= (first[1:] == AFTER_LETTERS) & closed[:-1]
        return found


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
