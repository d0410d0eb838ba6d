"""What answers or labels of an item are scored, and which is best."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from llmscale.evaluate.artefact import Record


def scores(record: Record) -> list[float]:
    """A score of each answer, its total log-probability in nats, or of each label, its probability."""
    return [answer.total for answer in record.answers] if record.answers else list(record.probabilities)


def probabilities(record: Record) -> list[float]:
    """Of each answer or label, with sum 1: answers share by their total log-probabilities (softmax)."""
    if not record.answers:
        whole = math.fsum(record.probabilities)
        return [probability / whole if whole else math.nan for probability in record.probabilities]
    totals = scores(record)
    greatest = max(totals)
    if any(map(math.isnan, totals)) or math.isinf(greatest):
        return [math.nan] * len(totals)
    weights = [math.exp(total - greatest) for total in totals]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


def share_of_best(values: Sequence[float], right: Collection[int]) -> float:
    """1 where a right place alone is best, 0 where none is; of k places that tie, the share that is right.

    That is the expectation of a draw among the best, so that a model which prefers nothing is right by chance whatever
    the order of the answers. NaN where a value is.
    """
    if any(map(math.isnan, values)):
        return math.nan
    best = max(values)
    tied = [place for place, value in enumerate(values) if value == best]
    return sum(place in right for place in tied) / len(tied)
