"""Soft accuracy: how much of the answers' probability is on those that are right."""

from __future__ import annotations

import math

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Options
from llmscale.evaluate.metrics.choices import probabilities


def _soft_accuracy(record: Record, options: Options) -> float:
    masses = probabilities(record)
    return min(math.fsum(masses[place] for place in set(record.gold)), 1.0)


METRICS = (
    ItemMean(
        "soft_accuracy",
        "probability of the right answers among all answers",
        ("choice", "classify"),
        ("choices", "gold"),
        value=_soft_accuracy,
    ),
)
