"""Two models by a figure that is no mean over items, such as BLEU or perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmscale.evaluate.statistics.clustering import cluster_numbers
from llmscale.evaluate.statistics.difference import Difference
from llmscale.evaluate.statistics.interval import Interval
from llmscale.evaluate.statistics.means import Bounds
from llmscale.evaluate.statistics.resampling import Jackknife, jackknife
from llmscale.evaluate.statistics.sign_flips import Test

ENUMERATED = 10
"""Up to so many clusters all exchanges are tried."""
DRAWS = 1_999
"""Exchanges that are tried of more clusters. With the observed one they are 2,000."""


class CorpusDifference(Difference):
    """The difference of two corpora's figures. Where models are no different, any item's two outputs, with all those
    of its cluster, could as well be exchanged (approximate randomization, Noreen 1989; Riezler and Maxwell 2005)."""

    def __init__(
        self,
        statistic: Callable[[list[int]], float],
        n: int,
        clusters: Sequence[str] | None = None,
        seed: int = 0,
        bounds: Bounds | None = None,
        better: int = 0,
        worse: int = 0,
    ) -> None:
        """
        Args:
            statistic: the figure of any items' outputs, by place: 0 to n - 1 are the first model's, n to 2n - 1 the
                second's, in the same order of items.
            bounds: the least and the largest difference there can be, where there are any.
            better, worse: items by which the first model is above the second, and below it, where items have a score.
        """
        self.n, self.better, self.worse = n, better, worse
        self._statistic, self._clusters, self._seed, self._bounds = statistic, clusters, seed, bounds
        self._cluster_of = cluster_numbers(clusters, n)

    @property
    def value(self) -> float:
        return self._jackknife.value

    @property
    def units(self) -> int:
        return self._jackknife.clusters

    @property
    def deviation(self) -> float:
        return self._jackknife.error * math.sqrt(self.units)

    @cached_property
    def test(self) -> Test:
        """Exact with up to `ENUMERATED` clusters, else of `DRAWS` exchanges by seed with the observed one."""
        observed = abs(self.value) * (1 - 1e-12)
        if self.value == 0:
            return Test(1.0, "exchange")
        if self.units <= ENUMERATED:
            masks = (np.arange(2**self.units)[:, None] >> np.arange(self.units)) & 1
            exchanged = [abs(self._difference(mask.astype(bool))) for mask in masks]
            return Test(float(np.mean(np.array(exchanged) >= observed)), "exchange, exact")
        generator = np.random.default_rng(self._seed)
        draws = (self._difference(generator.random(self.units) < 0.5) for _ in range(DRAWS))
        at_least = sum(abs(difference) >= observed for difference in draws)
        return Test((1 + at_least) / (DRAWS + 1), f"exchange, {DRAWS + 1:,} draws")

    def interval(self, level: float = 0.95) -> Interval:
        """The jackknife's, made to agree with the test."""
        interval = self._jackknife.interval(level, self._bounds)
        low, high = self.agreeing(interval.low, interval.high, level)
        return replace(interval, low=low, high=high)

    @cached_property
    def _jackknife(self) -> Jackknife:
        return jackknife(self._paired, self.n, self._clusters, self._seed)

    def _paired(self, places: list[int]) -> float:
        return self._statistic(places) - self._statistic([place + self.n for place in places])

    def _difference(self, exchanged: npt.NDArray[np.bool_]) -> float:
        second = exchanged[self._cluster_of]
        places = np.arange(self.n)
        first = places + self.n * second
        return self._statistic(first.tolist()) - self._statistic((2 * places + self.n - first).tolist())
