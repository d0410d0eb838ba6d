"""Permutations that depend on nothing but their key."""

from __future__ import annotations

import xxhash


def shuffled(items: list[int], *key: int) -> list[int]:
    """A permutation of `items` that depends on nothing but `items` and `key`, in any version of any library."""
    prefix = ",".join(map(str, key))
    return sorted(items, key=lambda item: (xxhash.xxh64_intdigest(f"{prefix}:{item}".encode()), item))
