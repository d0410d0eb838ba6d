"""Texts as words, whatever their case, white space and punctuation."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.base.unicode import normalize

# Scripts that are written without spaces: kana, Chinese characters, Thai, Lao, Burmese and Khmer.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}](?<=\w)|[^\W_{_ALONE}]+")
_LONE = re.compile(rf"[{_ALONE}]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


class Words(NamedTuple):
    """The words of a text: letters and digits in a row, or one character of a script without spaces."""

    words: list[str]
    starts: npt.NDArray[np.int64]
    """(n,) first character of each in the normalised text."""
    ends: npt.NDArray[np.int64]
    """(n,) the character behind each."""


def normalised(text: str) -> str:
    """NFKC and case folding."""
    return normalize("NFKC", normalize("NFKC", text).casefold())


def words_of(text: str, is_normalised: bool = False) -> Words:
    """The words of a text after `normalised`."""
    found = list(_WORD.finditer(text if is_normalised else normalised(text)))
    places = np.array([match.span() for match in found], dtype=np.int64).reshape(-1, 2)
    return Words([match[0] for match in found], places[:, 0], places[:, 1])


def length_in_words(words: tuple[str, ...] | list[str]) -> float:
    """Length of a text, in which 8 characters of a script without spaces count as 5 words."""
    alone = sum(map(bool, map(_LONE.match, words)))
    return len(words) - alone + alone * 5 / 8


def word_hashes(words: list[str] | tuple[str, ...]) -> Hashes:
    """(n,) a 64-bit hash of each word."""
    return np.fromiter(map(_hash, words), np.uint64, len(words))


def ngram_hashes(hashes: Hashes, sizes: list[int]) -> dict[int, Hashes]:
    """For each size the (n - size + 1,) hashes of the runs of so many words, modulo 2^64."""
    made: dict[int, Hashes] = {}
    runs = np.zeros(len(hashes) + 1, dtype=np.uint64)
    for size in range(1, max(sizes, default=0) + 1):
        if size > len(hashes):
            break
        runs = runs[:-1] * _MULTIPLIER + hashes[size - 1 :]
        if size in sizes:
            made[size] = runs
    return made


@functools.lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
