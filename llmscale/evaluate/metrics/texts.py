"""Metrics of a written text beside right texts: the best reference counts, and the mean over samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Option, Options

Comparison = Callable[[str, str, Options], float]
"""A value from a reference and from what was written."""


def text_metric(name: str, summary: str, compare: Comparison, options: Mapping[str, Option] | None = None) -> ItemMean:
    """A metric from 0 to 1 of kinds generate and span: the mean over samples of the best reference's value."""

    def value(record: Record, options: Options) -> float:
        best = [max(compare(reference, text, options) for reference in record.references) for text in record.generated]
        return math.fsum(best) / len(best)

    return ItemMean(
        name, summary, ("generate", "span"), ("references", "generated"), options=options or {}, value=value
    )


def f_score(precision: float, recall: float) -> float:
    """The harmonic mean of precision and recall, 0 where both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
