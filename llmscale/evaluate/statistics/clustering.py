"""Variance of a ratio of sums over clusters of unequal size, and how many degrees of freedom it has.

A mean is such a ratio with a denominator of 1 an item, and an item without a cluster is a cluster of its own, so that
Student's t of a mean is the simplest case of the formulas here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics.interval import error_rate

Floats = npt.NDArray[np.float64]


class Ratio(NamedTuple):
    """An estimated ratio of sums."""

    value: float
    variance: float
    """Not a number with one cluster."""
    freedom: float
    """Degrees of freedom of the variance."""


def cluster_numbers(clusters: Sequence[Hashable] | None, n: int) -> npt.NDArray[np.int64]:
    """A number from 0 for the cluster of each item, in the order in which clusters first appear; without clusters,
    each item is one."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters for {n} items")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in clusters], dtype=np.int64)


def sums_by(numbers: npt.NDArray[np.int64], values: Any) -> Floats:
    """Sum of the values of each cluster."""
    return np.bincount(numbers, weights=np.asarray(values, dtype=float)).astype(np.float64)


def ratio_of_sums(numerators: Floats, denominators: Floats) -> Ratio:
    """Sum of numerators / sum of denominators, from sums of each cluster.

    The variance is CR2 (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018, section 2) of the regression through
    the origin with weights 1 / denominator, whose slope this ratio is. It is without bias for items that do not depend
    on each other, and nearly so else, however unequal the clusters are.
    """
    total = denominators.sum()
    value = float(numerators.sum() / total)
    shares = denominators / total
    if len(shares) < 2 or shares.max() >= 1:
        return Ratio(value, math.nan, 0.0)
    residuals = numerators - value * denominators
    variance = float((residuals**2 / (1 - shares)).sum() / total**2)
    return Ratio(value, variance, degrees_of_freedom(shares))


def degrees_of_freedom(shares: Floats) -> float:
    """Of the CR2 variance of clusters with these shares of the denominator, by Satterthwaite's approximation.

    The smaller of two: items that do not depend on each other (a cluster's sum varies as its share), and items that
    are all alike within a cluster (as its share squared). Both are clusters - 1 where the shares are equal.
    """
    weighted = shares / np.sqrt(1 - shares)
    squared = shares**2 / np.sqrt(1 - shares)
    alone = _satterthwaite(shares / (1 - shares), weighted, weighted, 0.5)
    # (D - ss')^2 with D = diag(shares) is D^2 - (Ds s' + s s'D) + (s's) s s'.
    norm = float((shares**2).sum())
    alike = _satterthwaite(shares**2 / (1 - shares), squared, weighted, 1.0, norm)
    return min(alone, alike)


def _satterthwaite(diagonal: Floats, a: Floats, b: Floats, scale: float, c: float = 0.0) -> float:
    """(trace M)^2 / trace M^2 of M = diag(diagonal) - scale (ab' + ba') + c bb'."""
    aa, ab, bb = float(a @ a), float(a @ b), float(b @ b)
    low_rank_diagonal = -2 * scale * a * b + c * b * b
    trace = float(diagonal.sum() + low_rank_diagonal.sum())
    low_rank_square = scale**2 * (2 * aa * bb + 2 * ab**2) - 4 * scale * c * ab * bb + c**2 * bb**2
    square = float((diagonal**2).sum() + 2 * (diagonal * low_rank_diagonal).sum() + low_rank_square)
    return trace**2 / square


def student(level: float, freedom: float) -> float:
    """Half width of the two-sided interval of Student's t, in standard errors."""
    return float(scipy.special.stdtrit(freedom, 1 - error_rate(level) / 2))
