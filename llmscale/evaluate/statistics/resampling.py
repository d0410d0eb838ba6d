"""Intervals of figures that are no mean, such as BLEU or Matthews' correlation of a whole corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmscale.evaluate.statistics.clustering import Floats, cluster_numbers, student
from llmscale.evaluate.statistics.interval import Interval
from llmscale.evaluate.statistics.means import Bounds, without_spread

MOST_PARTS = 200
"""From how many clusters on several are left out at once."""


def corpus_interval(
    statistic: Callable[[list[int]], float],
    n: int,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Interval:
    """Any smooth statistic of a corpus: the jackknife over clusters (Efron and Stein 1981), with Student's t.

    Args:
        statistic: of a list of items' numbers from 0.
        n: items.
        clusters: items of one name may depend on each other.
        seed: by which more than `MOST_PARTS` clusters are parted.
        bounds: the least and the largest possible value, where there are any.

    Raises:
        ValueError: no items.
    """
    return jackknife(statistic, n, clusters, seed).interval(level, bounds)


@dataclass(frozen=True)
class Jackknife:
    """A statistic of all items, and of all but a part of them, for each part."""

    value: float
    without: Floats
    n: int
    clusters: int

    @property
    def error(self) -> float:
        """Standard error; 0 where no part matters, not a number where some figure is none or there is one part."""
        parts = len(self.without)
        if parts < 2 or not np.isfinite([self.value, *self.without]).all():
            return math.nan
        # About the figure of all and not the mean of those without a part: never less (Efron 1982, section 4).
        error = math.sqrt((parts - 1) / parts * float(((self.without - self.value) ** 2).sum()))
        return error if error > 1e-12 * abs(self.value) else 0.0

    def interval(self, level: float, bounds: Bounds | None) -> Interval:
        error = self.error
        if error > 0:
            half = student(level, len(self.without) - 1) * error
            low, high = self.value - half, self.value + half
            return Interval(self.value, low, high, self.n, self.clusters, "jackknife", level, error).within(bounds)
        if error == 0 or len(self.without) < 2:
            return without_spread(self.value, self.n, self.clusters, level, bounds)
        nothing = without_spread(self.value, self.n, self.clusters, level, None)
        return replace(nothing, method="undefined without some items").within(bounds)


def jackknife(
    statistic: Callable[[list[int]], float], n: int, clusters: Sequence[str] | None = None, seed: int = 0
) -> Jackknife:
    """Compute a statistic without each cluster, or without each of `MOST_PARTS` parts of more clusters, by seed.

    Raises ValueError without items.
    """
    if n < 1:
        raise ValueError("an interval needs items")
    numbers = cluster_numbers(clusters, n)
    independent = int(numbers.max()) + 1
    parts = min(independent, MOST_PARTS)
    part_of = np.random.default_rng(seed).permutation(np.arange(independent) % parts)[numbers]
    without = [float(statistic(np.flatnonzero(part_of != part).tolist())) for part in range(parts if parts > 1 else 0)]
    return Jackknife(float(statistic(list(range(n)))), np.array(without, dtype=float), n, independent)
