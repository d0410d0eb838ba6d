"""The one form of every figure with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from data_pipeline.base.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A figure and where the truth of the population lies, from which items (or clusters) were drawn."""

    value: float
    """The figure that is shown."""
    low: float
    high: float
    """Ends of the interval; infinite where the data say nothing of them."""
    n: int
    """Items."""
    clusters: int
    """Independent units: clusters of items, or items where there are none."""
    method: str
    """How the ends were found."""
    level: float = 0.95
    standard_error: float = math.nan
    """Of `value`; not a number where the method has none."""

    def within(self, bounds: tuple[float, float] | None) -> Interval:
        """The interval without what lies beyond the least and the largest possible value."""
        if bounds is None:
            return self
        least, largest = bounds
        return replace(self, low=min(max(self.low, least), self.value), high=max(min(self.high, largest), self.value))


def error_rate(level: float) -> float:
    """1 - level; raises UserError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise UserError(f"the level of confidence is {level}, but must lie between 0 and 1, such as 0.95")
    return 1 - level


def unseen_share(units: int, level: float) -> float:
    """The largest share of a population that may differ from `units` draws which are all alike.

    A share p is missed by all draws with probability (1 - p)^units; the interval's two ends share what is left of
    `level`. With 95 % about 3.7 / units: the rule of three, two-sided.
    """
    return 1 - (error_rate(level) / 2) ** (1 / units)
