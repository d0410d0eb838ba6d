"""Intervals of a share of successes."""

from __future__ import annotations

import math

import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics.interval import Interval, error_rate


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval, whose coverage is about `level` on average over shares; `exact_interval` never covers less.

    Wilson 1927; Brown, Cai and DasGupta 2001, section 3, recommend it, for few items above all.

    Raises:
        ValueError: no items, or other successes than 0 to n.
    """
    _check(successes, n)
    share = successes / n
    low, high = wilson_limits(share, n, level)
    return Interval(share, low, high, n, n, "Wilson", level, math.sqrt(share * (1 - share) / n))


def exact_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """The interval of Clopper and Pearson 1934, which covers the truth with at least `level`, whatever it is.

    Raises:
        ValueError: no items, or other successes than 0 to n.
    """
    _check(successes, n)
    tail = error_rate(level) / 2
    low = float(scipy.special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(scipy.special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    share = successes / n
    return Interval(share, low, high, n, n, "Clopper-Pearson", level, math.sqrt(share * (1 - share) / n))


def wilson_limits(share: float, n: float, level: float) -> tuple[float, float]:
    """Ends of Wilson's interval; n may be an effective number of items, and no integer."""
    z = float(scipy.special.ndtri(1 - error_rate(level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if share == 0 else max(centre - half, 0.0)), (1.0 if share == 1 else min(centre + half, 1.0))


def _check(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} items")
