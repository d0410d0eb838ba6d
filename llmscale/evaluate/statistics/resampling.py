"""Intervals of figures that are no mean, such as BLEU or Matthews' correlation of a whole corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from llmscale.evaluate.statistics.clustering import cluster_numbers, student
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

    Of more than `MOST_PARTS` clusters, as many parts of them are made by `seed`, and one part is left out at a time.

    Args:
        statistic: of a list of items' numbers from 0.
        n: items.
        bounds: the least and the largest possible value, where there are any.

    Raises:
        ValueError: no items.
    """
    if n < 1:
        raise ValueError("an interval needs items")
    numbers = cluster_numbers(clusters, n)
    independent = int(numbers.max()) + 1
    parts = min(independent, MOST_PARTS)
    part_of = np.random.default_rng(seed).permutation(np.arange(independent) % parts)[numbers]
    value = float(statistic(list(range(n))))
    if parts < 2 or not math.isfinite(value):
        return without_spread(value, n, independent, level, bounds)
    without = np.array([float(statistic(np.flatnonzero(part_of != part).tolist())) for part in range(parts)])
    if not np.isfinite(without).all():
        return Interval(value, -math.inf, math.inf, n, independent, "undefined without some items", level).within(
            bounds
        )
    # About the figure itself and not the mean of those without a part: never less (Efron 1982, section 4).
    error = math.sqrt((parts - 1) / parts * float(((without - value) ** 2).sum()))
    if error <= 1e-12 * abs(value):
        return without_spread(value, n, independent, level, bounds)
    half = student(level, parts - 1) * error
    return Interval(value, value - half, value + half, n, independent, "jackknife", level, error).within(bounds)
