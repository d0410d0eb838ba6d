"""Random numbers that are a function of a key and of nothing else: no state, the same in every version and layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash


def uniforms(count: int, *key: int | str) -> np.ndarray:
    """`count` float64 numbers in [0, 1) that depend on nothing but `key`.

    SplitMix64 (Steele, Lea and Flood 2014, figure 15) from the xxh64 of the key: number i needs none of the others.
    """
    return as_uniforms(split_mix(_seed(key), np.arange(1, count + 1)))


def as_uniforms(numbers: np.ndarray) -> np.ndarray:
    """Numbers of `split_mix` as float64 in [0, 1)."""
    return (numbers >> np.uint64(11)) * 2.0**-53


def seeds_of(keys: Sequence[tuple[int | str, ...]]) -> np.ndarray:
    """(len(keys),) uint64: the seeds that `uniforms` takes for these keys."""
    return np.array([_seed(key) for key in keys], dtype=np.uint64)


def split_mix(seed: int | np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Numbers `numbers` (any shape, int64) of the SplitMix64 sequence of a 64-bit seed, as uint64; all are different.

    Several seeds (uint64) are broadcast against the numbers.
    """
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(seed, dtype=np.uint64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def choose(count: int, total: int, *key: int | str) -> np.ndarray:
    """Sorted indices of `count` different numbers below `total`, every set as likely as any other."""
    return choose_each(count, total, [key])[0]


def choose_each(count: int, total: int, keys: Sequence[tuple[int | str, ...]]) -> np.ndarray:
    """What `choose` gives for each key: (len(keys), count), in much less time."""
    if count in (0, total):
        return np.tile(np.arange(count), (len(keys), 1))
    draws = split_mix(seeds_of(keys)[:, None], np.arange(1, total + 1))
    # All draws of a row are different, so exactly `count` of them are not above the one in that place.
    last = np.partition(draws, count - 1, axis=1)[:, count - 1, None]
    return np.flatnonzero(draws <= last).reshape(-1, count) - np.arange(len(keys))[:, None] * total


def _seed(key: Iterable[int | str]) -> int:
    return xxhash.xxh64_intdigest(",".join(map(str, key)).encode())


def shuffled(items: list[int], *key: int) -> list[int]:
    """A permutation of `items` that depends on nothing but `items` and `key`, in any version of any library."""
    prefix = ",".join(map(str, key))
    return sorted(items, key=lambda item: (xxhash.xxh64_intdigest(f"{prefix}:{item}".encode()), item))
