"""Which bytes of a text each of its tokens stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def spans_by_bytes(text: str, pieces: Iterable[bytes | bool]) -> np.ndarray | None:
    """Spans of tokens whose bytes, one after the other, are the text.

    Args:
        pieces: the bytes of each token; a boolean where a token is no text of its own.

    Returns:
        (T, 2) int64: [start, end) in the UTF-8 bytes of the text; None where the tokens spell something else. A space
        that the tokenizer puts in front of a text belongs to no byte.
    """
    known = list(pieces)
    if any(isinstance(piece, bool) for piece in known):
        return None
    ends = np.cumsum([len(piece) for piece in known], dtype=np.int64)  # type: ignore[arg-type]
    spelled, written = b"".join(known), text.encode()  # type: ignore[arg-type]
    if spelled == b" " + written:
        ends = ends - 1
    elif spelled != written:
        return None
    starts = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
    return np.stack([np.maximum(starts, 0), ends], axis=1).reshape(-1, 2)


def spans_by_characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Spans in bytes (T, 2) of spans in characters: of a token that is a part of a character, all of it."""
    sizes = [len(character.encode()) for character in text]
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    return before[np.clip(places, 0, len(text))]
