"""How often a comparison finds a difference, and how many items it would take."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics.clustering import Floats, student
from llmscale.evaluate.statistics.interval import error_rate
from llmscale.evaluate.statistics.sign_flips import binomial_below

POWER = 0.8
"""How often the items that are asked for would find the difference (Cohen 1988, section 2.4)."""
_MOST_COUNTS = 500
MOST_ITEMS = 10**9
"""Beyond it no number is named."""


def mcnemar_power(n: int, better: float, worse: float, level: float = 0.95) -> float:
    """Of the exact test with n items, of which these shares are right by one model only.

    The number of contested items is Bin(n, better + worse), and those that are better a share of them. All numbers
    that matter are summed over, or `_MOST_COUNTS` of them at equal distances, which is as good where there are more.
    """
    contested = better + worse
    if contested <= 0 or n < 1:
        return 0.0
    spread = math.sqrt(n * contested * (1 - contested))
    first, last = math.floor(n * contested - 9 * spread - 9), math.ceil(n * contested + 9 * spread + 9)
    first, last = max(first, 1), min(last, n)
    counts = np.arange(first, last + 1, 1 + (last - first) // _MOST_COUNTS).astype(float)
    critical = critical_count(counts, error_rate(level))
    share = better / contested
    rejected = binomial_below(critical, counts, share) + binomial_below(critical, counts, 1 - share)
    masses = _binomial(counts, n, contested)
    return float((masses * rejected).sum() / (masses.sum() if last - first >= _MOST_COUNTS else 1))


def critical_count(contested: Floats, error: float) -> Floats:
    """The largest smaller count with which McNemar's exact test rejects; -1 where none does."""
    start = np.nan_to_num(np.floor(scipy.special.bdtrik(error / 2, contested, 0.5)), nan=-1.0)
    candidates = np.maximum(start[:, None] + np.array([-1.0, 0.0, 1.0]), -1.0)
    # Half of them and more would count both tails twice.
    fits = (2 * binomial_below(candidates, contested[:, None], 0.5) <= error) & (2 * candidates < contested[:, None])
    return np.where(fits, candidates, -1.0).max(axis=1)


def student_power(difference_in_errors: float, freedom: float, level: float = 0.95) -> float:
    """Of a two-sided t test of a difference that is so many standard errors large: noncentral t."""
    if level >= 1:
        return 0.0
    half, shift = student(level, freedom), abs(difference_in_errors)
    if shift > 30 + half:  # beyond what nctdtr computes
        return 1.0
    return float(1 - scipy.special.nctdtr(freedom, shift, half) + scipy.special.nctdtr(freedom, shift, -half))


def flip_error(units: int, error: float) -> float:
    """The largest p-value of sign flips of so many different units that is at most `error`; 0 where none is."""
    flips = 2.0 ** min(units, 60)
    return 2 * math.floor(error / 2 * flips) / flips


def flip_power(effect: float, units: int, error: float) -> float:
    """Of flips of the signs of so many normal differences, with a mean of `effect` standard deviations.

    With as few units as can reject at all, only differences of one sign do: that power is exact. With more it is about
    that of a t test that errs as often.
    """
    attained = flip_error(units, error)
    if 0 < attained <= 2.0 ** (1 - units):
        return float(scipy.special.ndtr(effect) ** units + scipy.special.ndtr(-effect) ** units)
    return student_power(effect * math.sqrt(units), units - 1, 1 - attained)


def equivalence_power(difference: float, standard_error: float, delta: float, level: float = 0.95) -> float:
    """Of two one-sided tests within delta, of a true difference (normal approximation)."""
    z = float(scipy.special.ndtri(level))
    above, below = (delta - difference) / standard_error - z, (delta + difference) / standard_error - z
    return max(0.0, float(scipy.special.ndtr(above) + scipy.special.ndtr(below) - 1))


def normal_number(effect: float, level: float) -> float:
    """How many units find a mean of `effect` standard deviations, by the normal approximation."""
    return ((scipy.special.ndtri(1 - error_rate(level) / 2) + scipy.special.ndtri(POWER)) / effect) ** 2


def least_number(power_of: Callable[[int], float], guess: float, least: int) -> int | None:
    """The least number from `least` on with which `POWER` is reached, to half a percent; None beyond `MOST_ITEMS`.

    It is looked for around a guess.
    """
    if not guess < MOST_ITEMS:
        return None
    high = max(math.ceil(guess), least)
    while power_of(high) < POWER:
        high = math.ceil(1.3 * high)
        if high > MOST_ITEMS:
            return None
    low = high
    while low > least and power_of(low) >= POWER:
        low, high = max(least, math.floor(low / 1.3)), low
    if power_of(low) >= POWER:
        return low
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def _binomial(counts: Floats, n: int, share: float) -> Floats:
    if share >= 1:
        return np.where(counts == n, 1.0, 0.0)
    logs = scipy.special.gammaln(n + 1) - scipy.special.gammaln(counts + 1) - scipy.special.gammaln(n - counts + 1)
    return np.asarray(np.exp(logs + counts * math.log(share) + (n - counts) * math.log1p(-share)))
