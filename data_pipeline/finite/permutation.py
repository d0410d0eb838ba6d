"""A random order of any number of samples, evaluated at any place, in constant memory."""

from __future__ import annotations

import numpy as np
import xxhash

LARGEST = 1 << 48
ROUNDS = 8
SMALL = 256
"""Up to this size the order is a table, by hashes of the numbers: halves of less than four bits mix badly, so that
some orders of five samples would be a tenth more likely than others."""
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Permutation:
    """A pseudo-random permutation of range(n), the same for the same n and key on every machine.

    A Feistel network (Luby and Rackoff 1988) on the smallest power of two not below n, its halves unequal by a bit
    where the number of bits is odd; results outside range(n) go through it again until they are inside ("cycle
    walking", Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4), less than once more on
    average. The round function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators", figure 17). A thousand places at once cost little more than ten: ask for blocks.
    """

    def __init__(self, n: int, *key: int) -> None:
        """`key`: any integers, such as seed and epoch. Raises ValueError unless 1 <= n <= 2^48."""
        if not 1 <= n <= LARGEST:
            raise ValueError(f"a permutation of {n} places is not possible, only of 1 to {LARGEST}")
        self.n = n
        bits = (n - 1).bit_length()
        self._right_bits = bits // 2
        self._left_bits = bits - self._right_bits
        names = (f"{','.join(map(str, key))}:{turn}" for turn in range(ROUNDS))
        self._keys = [np.uint64(xxhash.xxh64_intdigest(name.encode())) for name in names]
        self._table: np.ndarray | None = None
        if n <= SMALL:
            hashes = _mix(_mix(np.arange(n, dtype=np.uint64), self._keys[0]), self._keys[1])
            self._table = np.argsort(hashes, kind="stable")

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at each place: integers in range(n) of any shape to int64 of that shape.

        Raises IndexError for a place that is not in range(n).
        """
        places = np.asarray(places)
        if places.size and not 0 <= places.min() <= places.max() < self.n:
            raise IndexError(f"places {places.min()} to {places.max()} are not all in range({self.n})")
        if self._table is not None:
            return self._table[places.astype(np.int64)]
        values = self._encrypt(places.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.n)
        while len(outside):
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.n]
        return values.astype(np.int64).reshape(places.shape)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        """The Feistel network: a bijection of the (left_bits + right_bits)-bit numbers."""
        left_bits, right_bits = self._left_bits, self._right_bits
        left = values >> np.uint64(right_bits)
        right = values & np.uint64((1 << right_bits) - 1)
        for key in self._keys:
            # The halves swap places, and with them their widths.
            left, right = right, left ^ (_mix(right, key) >> np.uint64(64 - left_bits))
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """SplitMix64's finaliser of values + key (modulo 2^64); its high bits are the best mixed."""
    mixed = values + key
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    return mixed ^ (mixed >> np.uint64(31))
