"""Brier's score over all answers (Brier 1950): the squared distance from certainty of what is right, from 0 to 2."""

from __future__ import annotations

import math

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Options
from llmscale.evaluate.metrics.choices import probabilities


def _brier(record: Record, options: Options) -> float:
    """Several right answers count as one, with the sum of their probabilities."""
    masses = probabilities(record)
    right = math.fsum(masses[place] for place in set(record.gold))
    wrong = [mass for place, mass in enumerate(masses) if place not in record.gold]
    return (1 - right) ** 2 + math.fsum(mass**2 for mass in wrong)


METRICS = (
    ItemMean(
        "brier_score",
        "squared error of the answers' probabilities, 0 to 2 (lm-eval's brier_score)",
        ("choice", "classify"),
        ("choices", "gold"),
        higher_is_better=False,
        bounds=(0.0, 2.0),
        value=_brier,
    ),
)
