"""Calibration: how far the probability of the best answer is from how often it is right, in bins of that probability.

Expected calibration error, Naeini et al. 2015; the bins of Guo et al. 2017 (equal width, closed at their upper end), or
with an equal number of items each (Nguyen and O'Connor 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import Corpus, Option, Options, Statistic
from llmscale.evaluate.metrics.choices import probabilities, share_of_best

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Items whose best answer has a probability in a range."""

    low: float
    high: float
    """Ends of the range; in bins of equal number the least and the greatest probability within."""
    count: int
    confidence: float
    """Mean probability of the best answer."""
    accuracy: float
    """Share of items whose best answer is right."""


def reliability_table(records: Sequence[Record], bins: int = BINS, binning: str = "width") -> list[ReliabilityBin]:
    """The bins that hold items, in rising order: the data of a reliability diagram."""
    confidence, right = _confidence_and_right(records)
    table = []
    for number, places in enumerate(_binned(confidence, right, bins, binning)):
        if len(places):
            within = confidence[places]
            ends = (number / bins, (number + 1) / bins) if binning == "width" else (within.min(), within.max())
            means = float(within.mean()), float(right[places].mean())
            table.append(ReliabilityBin(float(ends[0]), float(ends[1]), len(places), *means))
    return table


def _confidence_and_right(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The greatest probability of each record, and whether it is that of a right answer."""
    masses = [probabilities(record) for record in records]
    right = [share_of_best(mass, record.gold) for mass, record in zip(masses, records, strict=True)]
    return np.array([max(mass) for mass in masses]), np.array(right)


def _binned(confidence: np.ndarray, right: np.ndarray, bins: int, binning: str) -> list[np.ndarray]:
    """Places of the items of each bin."""
    if binning == "count":
        # By confidence and then by being right, so that the order of the records does not enter.
        return np.array_split(np.lexsort((right, confidence)), bins)
    number = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    return [np.flatnonzero(number == bin_) for bin_ in range(bins)]


def _prepare(records: Sequence[Record], options: Options) -> Statistic:
    confidence, right = _confidence_and_right(records)

    def expected_error(places: Sequence[int]) -> float:
        chosen, chosen_right = confidence[np.asarray(places)], right[np.asarray(places)]
        if np.isnan(chosen).any():
            return float("nan")
        gap = chosen - chosen_right
        binned = _binned(chosen, chosen_right, options["bins"], options["binning"])
        return float(sum(abs(gap[within].sum()) for within in binned) / len(gap))

    return expected_error


METRICS = (
    Corpus(
        "expected_calibration_error",
        "distance of confidence from accuracy, over bins of confidence",
        ("choice", "classify"),
        ("choices", "gold"),
        higher_is_better=False,
        options={"bins": Option(BINS, least=1), "binning": Option("width", allowed=("width", "count"))},
        prepare=_prepare,
    ),
)
