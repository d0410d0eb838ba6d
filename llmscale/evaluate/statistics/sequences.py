"""Looking many times, after each checkpoint say, without being wrong more often.

Two things are looked at. *Items that are added*: each look has more items than the one before, all drawn alike, and
the question is one mean; `confidence_sequence` holds at all looks at once, however many there are and whatever makes
one stop. *The same items with another model at each look*: a curve of scores; each look is a question of its own, and
`look_level` says how sure each interval must be for all of them to hold together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmscale.evaluate.statistics.clustering import Floats
from llmscale.evaluate.statistics.interval import Interval, error_rate
from llmscale.evaluate.statistics.means import Bounds

_MOST_OF_CAPITAL = 0.5
"""The share of the capital that a bet may lose; c of Waudby-Smith and Ramdas 2024, section 4.1."""
_BISECTIONS = 32
_BLOCK = 2**20
"""Looks times values that are computed at once."""


def confidence_sequence(
    values: Sequence[float], looks: Sequence[int] | None = None, level: float = 0.95, bounds: Bounds = (0.0, 1.0)
) -> list[Interval]:
    """Intervals of the mean of bounded values, all of which hold at once with probability `level`.

    The hedged capital of Waudby-Smith and Ramdas 2024 (equation 26, theorem 3): one who bets that the mean is not m has
    a fortune that no strategy makes grow if it is; an m stays in as long as the fortune is below 1 / (1 - level).

    Args:
        values: in the order in which they came; each has the same mean, given those before. Where items depend on each
            other, the mean of each cluster.
        looks: how many values were there at each look; every number from 1 without.
        bounds: the least and the largest possible value.

    Raises:
        ValueError: a value beyond the bounds, or a look with no values or more than there are.
    """
    array = np.asarray(values, dtype=float)
    least, largest = bounds
    if not (np.isfinite(array).all() and (array >= least).all() and (array <= largest).all()):
        raise ValueError(f"values must lie from {least} to {largest}")
    counts = list(range(1, len(array) + 1)) if looks is None else list(looks)
    if not all(1 <= count <= len(array) for count in counts):
        raise ValueError(f"looks {counts} of {len(array)} values")
    unit = (array - least) / (largest - least)
    bets = _bets(unit, error_rate(level))
    # The value of -x against -m is that of x against m, so that the upper end is a lower one of 1 - x.
    ends = zip(_lower_ends(unit, bets, counts, level), _lower_ends(1 - unit, bets, counts, level), strict=True)
    intervals = []
    width = largest - least
    for count, (from_least, from_largest) in zip(counts, ends, strict=True):
        mean = float(array[:count].mean())
        low, high = least + width * from_least, largest - width * from_largest
        intervals.append(Interval(mean, min(low, mean), max(high, mean), count, count, "betting", level))
    return intervals


def paired_confidence_sequence(
    scores: Sequence[float],
    others: Sequence[float],
    looks: Sequence[int] | None = None,
    level: float = 0.95,
    bounds: Bounds = (0.0, 1.0),
) -> list[Interval]:
    """`confidence_sequence` of the difference of two models' scores of the same items, which lie within bounds."""
    differences = np.asarray(scores, dtype=float) - np.asarray(others, dtype=float)
    width = bounds[1] - bounds[0]
    return confidence_sequence(differences.tolist(), looks, level, (-width, width))


def look_level(look: int, level: float = 0.95, looks: int | None = None) -> float:
    """The level of the interval of one look, from 1, so that all looks' intervals hold at once with `level`.

    By Bonferroni where it is known how many `looks` there will be at most; else look k may err with (1 - level) /
    (k (k + 1)), which adds up to 1 - level over any number of looks. Looks may depend on each other in any way.

    Raises:
        ValueError: a look below 1 or beyond `looks`.
    """
    if look < 1 or (looks is not None and look > looks):
        raise ValueError(f"look {look} of {looks}")
    return 1 - error_rate(level) / (look * (look + 1) if looks is None else looks)


def _bets(unit: Floats, error: float) -> Floats:
    """How much to bet on each value, from those before it (Waudby-Smith and Ramdas 2024, equations 24 to 26)."""
    count = np.arange(1, len(unit) + 1)
    means = (0.5 + np.cumsum(unit)) / (count + 1)
    variances = (0.25 + np.cumsum((unit - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.asarray(np.sqrt(2 * math.log(2 / error) / (before * count * np.log(1 + count))))


def _lower_ends(unit: Floats, bets: Floats, counts: Sequence[int], level: float) -> list[float]:
    """For each number of values the largest mean that is rejected by bets on more than it, by bisection: the fortune
    falls as the mean that is tried grows."""
    wanted = math.log(2 / error_rate(level))
    rows = max(1, _BLOCK // max(1, len(unit)))
    ends: list[float] = []
    for start in range(0, len(counts), rows):
        block = np.array(counts[start : start + rows])
        most = int(block.max())
        counted = np.arange(most) < block[:, None]
        low, high = np.zeros(len(block)), np.ones(len(block))
        for _ in range(_BISECTIONS):
            mean = (low + high) / 2
            bet = np.minimum(bets[:most], _MOST_OF_CAPITAL / mean[:, None])
            gains = np.log1p(bet * (unit[:most] - mean[:, None]), where=counted, out=np.zeros(counted.shape))
            rejected = gains.sum(axis=1) >= wanted
            low, high = np.where(rejected, mean, low), np.where(rejected, high, mean)
        ends.extend(low.tolist())
    return ends
