"""Tests of paired differences: McNemar's, and flips of the signs of clusters; intervals by inverting the latter.

Where two models are no different, an item's two scores could as well be exchanged, with all those of its cluster: the
sign of a cluster's difference is a fair coin, whatever the spread and the size of clusters are.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics.clustering import Floats
from llmscale.evaluate.statistics.interval import error_rate

ENUMERATED = 14
"""Up to so many clusters all flips are tried."""
DRAWS = 19_999
"""Flips that are tried of more clusters. With the observed one they are 20,000."""
_BLOCK = 2**22
"""Signs that are drawn at once."""


class Test(NamedTuple):
    """Outcome of a two-sided test."""

    p_value: float
    name: str


def binomial_below(successes: Floats | float, trials: Floats | float, share: float) -> Floats:
    """P(X <= successes) of Bin(trials, share), for successes from -1 to trials - 1."""
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    tail = scipy.special.betainc(np.maximum(n - k, 1e-300), np.maximum(k, 0.0) + 1, 1 - share)
    return np.where(k < 0, 0.0, np.where(k >= n, 1.0, tail))


def mcnemar(better: int, worse: int) -> Test:
    """The exact conditional test of 0/1 scores (McNemar 1947): items on which only one of two is right are fair coins.

    It never errs more often than its level says; mid-p, which has more power, may.
    """
    contested = better + worse
    tail = float(binomial_below(min(better, worse), contested, 0.5)) if better != worse else 1.0
    return Test(min(1.0, 2 * tail), "McNemar, exact")


def sign_flip_test(differences: Floats, seed: int = 0) -> Test:
    """Two-sided test by the absolute sum of clusters' differences, each of which may have either sign.

    Exact for whole differences, and for up to `ENUMERATED` that are not 0; else of `DRAWS` flips by `seed`, with the
    observed one among them, so that it holds its level too (Phipson and Smyth 2010).
    """
    contested = differences[differences != 0]
    if not len(contested):
        return Test(1.0, "sign flips, exact")
    if (contested == np.round(contested)).all() and np.abs(contested).max() < 2**20:
        return Test(_whole_tail(np.abs(contested).astype(np.int64), abs(int(contested.sum()))), "sign flips, exact")
    observed = abs(contested.sum()) * (1 - 1e-12)
    if len(contested) <= ENUMERATED:
        sums = contested.sum() - 2 * _all_subsets(contested)
        return Test(float((np.abs(sums) >= observed).mean()), "sign flips, exact")
    sums = contested.sum() - 2 * _drawn_subsets(contested[:, None], seed)[:, 0]
    at_least = int((np.abs(sums) >= observed).sum())
    return Test((1 + at_least) / (DRAWS + 1), f"sign flips, {DRAWS + 1:,} draws")


class FlipInterval:
    """Differences that the sign-flip test does not reject, of sums of differences and denominators by cluster.

    With difference d assumed, cluster g has D_g - d N_g. Flipping the set F of clusters gives at least the observed
    sum where sum(D_F) / sum(N_F) <= d. So the ends are order statistics of the ratios of subsets of clusters, which
    makes coverage exact where clusters are symmetric about the truth (Hartigan 1969, typical values).
    """

    def __init__(self, differences: Floats, denominators: Floats, seed: int = 0) -> None:
        self._differences, self._denominators, self._seed = differences, denominators, seed

    @cached_property
    def _ratios(self) -> Floats:
        if len(self._differences) <= ENUMERATED:
            sums, sizes = _all_subsets(self._differences)[1:], _all_subsets(self._denominators)[1:]
        else:
            sums, sizes = _drawn_subsets(np.stack([self._differences, self._denominators], 1), self._seed).T
        return np.sort(sums[sizes > 0] / sizes[sizes > 0])

    def limits(self, level: float) -> tuple[float, float]:
        """Both ends; infinite with so few clusters that no flip is rare enough.

        An end is a difference that is rejected just so: the interval is open.
        """
        ratios = self._ratios
        # The one-sided p-value at d is (1 + ratios <= d) / (1 + ratios), and rejects where it is at most this half.
        rejected = math.floor(error_rate(level) / 2 * (len(ratios) + 1) * (1 + 1e-12)) - 1
        if rejected < 0:
            return -math.inf, math.inf
        return float(ratios[rejected]), float(ratios[-1 - rejected])


def _whole_tail(sizes: np.ndarray, observed: int) -> float:
    """P(|sum of +-sizes| >= observed), by adding up the clusters of each size, whose sum is binomial."""
    distribution = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        k = np.arange(count + 1)
        gammaln = scipy.special.gammaln
        logs = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1) - count * math.log(2)
        spaced = np.zeros(2 * size * count + 1)
        spaced[:: 2 * size] = np.exp(logs)
        distribution = np.convolve(distribution, spaced)
    total = int(sizes.sum())
    sums = np.arange(-total, total + 1)
    return min(1.0, float(distribution[np.abs(sums) >= observed].sum()))


def _all_subsets(values: Floats) -> Floats:
    """Sums of all subsets, that of the empty one first."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def _drawn_subsets(values: Floats, seed: int) -> Floats:
    """Sums of the rows [clusters, k] of `DRAWS` random subsets of clusters, as [DRAWS, k]."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(values))
    blocks = []
    for start in range(0, DRAWS, rows):
        shape = (min(rows, DRAWS - start), len(values))
        blocks.append(generator.integers(0, 2, shape, dtype=np.int8).astype(float) @ values)
    return np.concatenate(blocks)
