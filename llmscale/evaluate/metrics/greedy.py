"""Greedy accuracy: whether the model would write the whole target if it always took the most probable token.

LAMBADA's accuracy (Paperno et al. 2016).
"""

from __future__ import annotations

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Options


def _greedy_accuracy(record: Record, options: Options) -> float:
    return float(any(all(answer.greedy) for answer in record.answers))


METRICS = (
    ItemMean(
        "greedy_accuracy",
        "every token of the target is the most probable one (lm-eval's acc of LAMBADA)",
        ("likelihood",),
        ("answers",),
        value=_greedy_accuracy,
    ),
)
