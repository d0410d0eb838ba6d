"""What is asked of a difference of two models, however their figure is computed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics import power
from llmscale.evaluate.statistics.interval import Interval, error_rate
from llmscale.evaluate.statistics.sign_flips import Test

_SMALLEST = 1e-9
"""P-values of equivalence are not told apart below it."""


class Difference(ABC):
    """The figure of one model less that of another on the same items."""

    n: int
    """Items."""
    better: int
    """Items with a larger score than the other model's."""
    worse: int

    @property
    @abstractmethod
    def value(self) -> float:
        """The difference of the two figures."""

    @property
    @abstractmethod
    def units(self) -> int:
        """Clusters, or items where there are none."""

    @property
    @abstractmethod
    def test(self) -> Test:
        """Whether there is a difference."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """Standard deviation of what one unit adds: the standard error times the root of units."""

    @abstractmethod
    def interval(self, level: float = 0.95) -> Interval:
        """The interval of the difference, which is without 0 where the test rejects at 1 - level, and only there."""

    def power_of(self, units: int, effect: float, error: float) -> float:
        """How often the test of so many units, which may err so often, finds a mean of `effect` deviations."""
        return power.student_power(effect * math.sqrt(units), units - 1, 1 - error)

    def equivalence(self, delta: float) -> float:
        """P-value of two one-sided tests (Schuirmann 1987): the difference lies within +-delta at error rate p where
        its interval with level 1 - 2p does."""
        least, largest = _SMALLEST, 0.5
        if not abs(self.value) < delta:
            return 1.0
        while largest / least > 1.001:
            middle = math.sqrt(least * largest)
            least, largest = (least, middle) if self._within(delta, middle) else (middle, largest)
        return largest

    def items_needed(self, level: float = 0.95) -> int | None:
        """How many items in all would find a difference as large as this with power 0.8; None where none would."""
        if self.value == 0 or not self.deviation > 0:
            return None
        effect = abs(self.value) / self.deviation
        guess = power.normal_number(effect, level)
        return self._items(lambda units: self.power_of(units, effect, error_rate(level)), guess)

    def items_needed_within(self, delta: float, level: float = 0.95) -> int | None:
        """How many items in all would show with power 0.8 that a difference as this one lies within +-delta; None
        where none would."""
        if abs(self.value) >= delta or not self.deviation > 0:
            return None

        def power_of(units: int) -> float:
            return power.equivalence_power(self.value, self.deviation / math.sqrt(units), delta, level)

        return self._items(power_of, power.normal_number((delta - abs(self.value)) / self.deviation, level))

    def _items(self, power_of: Callable[[int], float], guess: float) -> int | None:
        units = power.least_number(power_of, guess, 3)
        return None if units is None else math.ceil(units * self.n / self.units)

    def _within(self, delta: float, error: float) -> bool:
        interval = self.interval(1 - 2 * error)
        return -delta < interval.low and interval.high < delta

    def agreeing(self, low: float, high: float, level: float) -> tuple[float, float]:
        """Ends of an interval that holds the value, and 0 only where the test does not reject.

        An end that does not agree gives way to the one that the test's p-value implies (Miettinen 1976).
        """
        low, high = min(low, self.value), max(high, self.value)
        rejects = self.test.p_value <= error_rate(level)
        if rejects == (low > 0 or high < 0):
            return low, high
        if self.test.p_value >= 1:
            return min(low, 0.0), max(high, 0.0)
        ndtri = scipy.special.ndtri
        implied = self.value * (1 - float(ndtri(error_rate(level) / 2) / ndtri(self.test.p_value / 2)))
        return (implied, high) if self.value > 0 else (low, implied)
