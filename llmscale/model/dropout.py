"""Dropout (Srivastava et al. 2014) that is a function of the sample and not of the layout.

Whether a value is dropped is a hash of (seed, global sample number, stack, layer, place in the layer, position,
channel). So ranks, micro batches, recomputation and a resume drop the same values, and a rank that holds some positions
or channels only computes its part of the mask alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

_WORD, _HALF = 0xFFFFFFFF, 0x7FFFFFFF
_GOLDEN = 0x9E3779B9


class Place(IntEnum):
    """Where in a layer something is dropped. The numbers are part of what a run computes: only add to them."""

    ATTENTION = 0
    ATTENTION_OUTPUT = 1
    CROSS_ATTENTION = 2
    CROSS_ATTENTION_OUTPUT = 3
    INNER = 4
    FEED_FORWARD_OUTPUT = 5
    LOW_RANK = 6


PLACES = 8
"""Numbers set aside for the places of a layer."""


@dataclass(frozen=True)
class Part:
    """Which of the equal parts of each axis a process computes that shares it with others; 0: all, or the first."""

    positions: int = 0
    """Of the positions of the residual stream."""
    inner_positions: int = 0
    """Of the positions inside feed-forward layers."""
    channels: int = 0
    """Of the channels inside feed-forward layers."""
    heads: int = 0
    """Of the heads of attention."""


@dataclass(frozen=True)
class LayerDropout:
    """What one layer drops."""

    keys: Tensor
    """(places, B, 2) int64."""
    layout_free: bool
    """Whether attention probabilities are dropped by hash too; else torch's fused kernels draw at random."""
    part: Part = Part()
    """Of which part of the layer."""


@dataclass(frozen=True)
class Dropout:
    """What one pass of a model in training drops: made for each micro batch."""

    keys: Tensor
    """(B, 2) int64: two 32-bit words for each sample."""
    layout_free: bool = True
    """See `LayerDropout`."""
    part: Part = Part()
    """Of which part of each layer."""

    @staticmethod
    def of(seed: int, sample_ids: Tensor, layout_free: bool = True, part: Part = Part()) -> Dropout:
        """For samples with the global numbers `sample_ids` (B,) of a run with `seed` (0 to 2^63 - 1)."""
        keys = torch.zeros((*sample_ids.shape, 2), dtype=torch.int64, device=sample_ids.device)
        for number in (seed & _HALF, seed >> 31, sample_ids & _HALF, (sample_ids >> 31) & _HALF):
            keys = fold(keys, number)
        return Dropout(keys, layout_free, part)

    def repeated(self, texts: int) -> Dropout:
        """What is dropped of several texts of each sample, (B * texts), of each other values."""
        numbers = torch.arange(texts, device=self.keys.device)
        return replace(self, keys=fold(self.keys[:, None], numbers).flatten(0, 1))

    def layers(self, stack: int, count: int) -> list[LayerDropout]:
        """What each of the `count` layers of a stack (0: the one with the head, 1: the encoder before it) drops."""
        keys = fold(self.keys, stack)
        # One number for layer and place, so that all keys come of one fold. 0 is left to `around`.
        numbers = 1 + torch.arange(count * PLACES, device=keys.device).view(count, PLACES, 1)
        return [LayerDropout(layer, self.layout_free, self.part) for layer in fold(keys, numbers)]

    def around(self, stack: int) -> tuple[Tensor, Tensor]:
        """(B, 2) keys of what is dropped before the first and after the last layer of a stack."""
        keys = fold(fold(self.keys, stack), 0)
        return fold(keys, 0), fold(keys, 1)

    def for_head(self) -> Tensor:
        """(B, 2) keys of what a head drops."""
        return fold(fold(fold(self.keys, 0), 0), 2)


def drop(x: Tensor, keys: Tensor, rate: float, part: Sequence[int] = ()) -> Tensor:
    """Zeros in place of a share `rate` of x (B, ..., T, C), the rest scaled by 1 / (1 - rate), by keys (B, 2).

    `part`: for the first dims after B, which of equal parts of the whole x is; 0 for those not given.
    """
    firsts = [size * number for size, number in zip(x.shape[1:], [*part, *[0] * x.dim()], strict=False)]
    places = [
        torch.arange(first, first + size, device=x.device) for first, size in zip(firsts, x.shape[1:], strict=True)
    ]
    return (x * (1 / (1 - rate))).masked_fill(dropped(keys, rate, places), 0.0)


def dropped(keys: Tensor, rate: float, places: Sequence[Tensor]) -> Tensor:
    """Which values to drop: booleans (B, len(places[0]), len(places[1]), ...).

    Args:
        keys: (B, 2).
        rate: probability of True.
        places: for each dim but the batch the numbers of the places wanted, below 2^31; a part of them gives that part
            of the mask.
    """
    *rows, columns = places
    for place in rows:
        keys = fold(keys[..., None, :], place)
    first, second = keys[..., None, :].unbind(-1)
    return _mix((first + columns * _GOLDEN) & _WORD, second) < round(rate * 2**32)


def fold(keys: Tensor, number: Tensor | int) -> Tensor:
    """New keys (..., 2) of keys (..., 2) and numbers (...) below 2^31, which are broadcast.

    Two rounds of a Feistel network over the two words: different numbers never lead one key to the same key, nor one
    number different keys.
    """
    first, second = keys.unbind(-1)
    first = (first + number * _GOLDEN) & _WORD
    second = second ^ _mix(first)
    first = first ^ _mix((second + _GOLDEN) & _WORD)
    return torch.stack([second, first], dim=-1)


def _mix(x: Tensor, entering: Tensor | int = 0) -> Tensor:
    """A hash of 32 bits, one to one in x: shifts and factors of a two-round function found by hash-prospector
    (Wellons 2018). `entering` comes in between the rounds, so that equal x still differ by it.

    Words are held in int64 and both factors are below 2^31, so that nothing overflows on any device or compiler.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15) ^ entering) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)
