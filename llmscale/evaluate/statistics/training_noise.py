"""What a model's score owes to the run and the checkpoint, whatever the items are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from llmscale.evaluate.statistics.clustering import student
from llmscale.evaluate.statistics.interval import Interval

Repeats = Literal["seeds", "checkpoints"]
"""What the scores of a model are of: runs that differ by their seed, or the last checkpoints of one run."""


def training_noise(
    scores: Sequence[float], others: Sequence[float], repeats: Repeats, level: float = 0.95
) -> Interval | None:
    """The difference of two models with the noise of training alone: Welch's t over runs or checkpoints.

    Of seeds the means are compared. Of checkpoints the last ones are, each a draw from about where its run stands, as
    those before it show (Heineman et al. 2025); they are not averaged, since neighbours are too alike to count as
    many. A model with one score takes the spread of the other. None where both have one.

    Args:
        scores: in the order of training, of the same items as `others`.
    """
    counts = [len(scores), len(others)]
    if max(counts) < 2:
        return None
    variances = [float(np.var(values, ddof=1)) if len(values) > 1 else math.nan for values in (scores, others)]
    freedoms = [count - 1 for count in counts]
    for place, other in ((0, 1), (1, 0)):
        if counts[place] == 1:
            variances[place], freedoms[place] = variances[other], freedoms[other]
    value = float(np.mean(scores) - np.mean(others)) if repeats == "seeds" else float(scores[-1] - others[-1])
    parts = [
        variance / count if repeats == "seeds" else variance for variance, count in zip(variances, counts, strict=True)
    ]
    variance = sum(parts)
    if variance == 0:
        return Interval(value, value, value, sum(counts), sum(counts), f"no noise of {repeats}", level, 0.0)
    if min(counts) == 1:
        freedom = float(max(freedoms))
    else:
        freedom = variance**2 / sum(part**2 / count for part, count in zip(parts, freedoms, strict=True))
    half = student(level, freedom) * math.sqrt(variance)
    return Interval(
        value, value - half, value + half, sum(counts), sum(counts), f"Welch over {repeats}", level, math.sqrt(variance)
    )
