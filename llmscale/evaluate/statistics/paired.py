"""Two models on the same items: the difference, its test, an interval that agrees with the test, and its power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmscale.evaluate.statistics import power
from llmscale.evaluate.statistics.clustering import (
    Floats,
    Ratio,
    cluster_numbers,
    ratio_of_sums,
    student,
    sums_by,
)
from llmscale.evaluate.statistics.difference import Difference
from llmscale.evaluate.statistics.interval import Interval
from llmscale.evaluate.statistics.means import is_binary
from llmscale.evaluate.statistics.sign_flips import FlipInterval, Test, mcnemar, sign_flip_test


@dataclass(frozen=True)
class PairedDifference(Difference):
    """The difference of means: scores of a model minus those of another on the same items, summed by cluster."""

    differences: Floats
    """Of each cluster."""
    denominators: Floats
    """Of each cluster: its items, or what their scores are a sum over."""
    n: int
    """Items."""
    better: int
    """Items with a larger score than the other model's."""
    worse: int
    binary: bool
    """Whether all scores are 0 or 1."""
    clustered: bool
    seed: int = 0

    @property
    def value(self) -> float:
        return float(self.differences.sum() / self.denominators.sum())

    @property
    def units(self) -> int:
        return len(self.differences)

    @cached_property
    def test(self) -> Test:
        """McNemar's exact test of 0/1 scores, else flips of clusters' signs."""
        if self.binary and not self.clustered:
            return mcnemar(self.better, self.worse)
        return sign_flip_test(self.differences, self.seed)

    def interval(self, level: float = 0.95) -> Interval:
        """The interval of the difference, which agrees with the test.

        It is made of the differences that the sign-flip test does not reject. But where clusters are alike, few of them
        may carry all that is seen: then one more of each sign is added to what differs (Bonett and Price 2012, who do
        so for 0/1 scores).
        """
        if self._alike:
            low, high = self._adjusted_limits(level)
            method = "Bonett-Price" if self.binary and not self.clustered else "Bonett-Price by cluster"
        else:
            low, high = self._flips.limits(level)
            method = "inverted sign flips"
        low, high = self.agreeing(low, high, level)
        error = math.sqrt(self._ratio.variance) if self._ratio.variance >= 0 else math.nan
        interval = Interval(self.value, low, high, self.n, len(self.differences), method, level, error)
        return interval.within((-1.0, 1.0)) if self.binary else interval

    def items_needed(self, level: float = 0.95) -> int | None:
        if not self.binary or self.clustered or self.better == self.worse:
            return super().items_needed(level)
        better, worse = self.better / self.n, self.worse / self.n
        spread = math.sqrt(max(better + worse - (better - worse) ** 2, 1e-9))
        guess = power.normal_number((better - worse) / spread, level)
        return power.least_number(lambda n: power.mcnemar_power(n, better, worse, level), guess, 1)

    def power_of(self, units: int, effect: float, error: float) -> float:
        if not self._alike:
            return power.flip_power(effect, units, error)
        # As if contested clusters differed by one size: there are few p-values to take.
        half = float((self.differences != 0).mean()) / 2
        return super().power_of(units, effect, power.mcnemar_power(units, half, half, 1 - error))

    @cached_property
    def _alike(self) -> bool:
        """Whether clusters have the same difference by their nature: 0/1 scores, no difference, or the same in all."""
        spread = np.ptp(self.differences) == 0
        return self.binary or bool((self.differences == 0).any() or spread)

    @cached_property
    def _ratio(self) -> Ratio:
        return ratio_of_sums(self.differences, self.denominators)

    @cached_property
    def _flips(self) -> FlipInterval:
        return FlipInterval(self.differences, self.denominators, self.seed)

    @cached_property
    def _adjusted(self) -> Ratio:
        """Of the clusters and two more of typical size, whose differences are of typical size too, but opposite."""
        contested = self.differences[self.differences != 0]
        typical = math.sqrt(float((contested**2).mean())) if len(contested) else float(self.binary)
        size = float(self.denominators.mean())
        return ratio_of_sums(np.append(self.differences, [typical, -typical]), np.append(self.denominators, [size] * 2))

    @property
    def deviation(self) -> float:
        ratio = self._adjusted if self._alike else self._ratio
        return math.sqrt(ratio.variance * len(self.differences)) if ratio.variance >= 0 else math.nan

    def _adjusted_limits(self, level: float) -> tuple[float, float]:
        half = student(level, self._adjusted.freedom) * math.sqrt(self._adjusted.variance)
        return self._adjusted.value - half, self._adjusted.value + half


def paired_difference(
    scores: Sequence[float],
    others: Sequence[float],
    clusters: Sequence[str] | None = None,
    denominators: Sequence[float] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models by their scores of the same items in the same order; positive where `scores` are larger.

    Args:
        clusters: items of one name may depend on each other.
        denominators: what the scores are sums over, such as bytes; 1 an item where there are none.
        seed: of the draws of sign flips, where there are too many to try all.

    Raises:
        ValueError: no items, unequal numbers of them, scores that are not finite.
    """
    first, second = np.asarray(scores, dtype=float), np.asarray(others, dtype=float)
    below = np.ones(len(first)) if denominators is None else np.asarray(denominators, dtype=float)
    if not len(first) or first.shape != second.shape or first.shape != below.shape:
        raise ValueError(f"{len(first)} scores beside {len(second)}")
    if not (np.isfinite(first) & np.isfinite(second) & (below >= 0)).all() or below.sum() <= 0:
        raise ValueError("scores must be finite")
    numbers = cluster_numbers(clusters, len(first))
    distinct = int(numbers.max()) + 1 < len(first)
    return PairedDifference(
        differences=sums_by(numbers, first - second),
        denominators=sums_by(numbers, below),
        n=len(first),
        better=int((first > second).sum()),
        worse=int((first < second).sum()),
        binary=is_binary(first) and is_binary(second) and denominators is None,
        clustered=distinct,
        seed=seed,
    )
