"""Bits per byte of the right answer: a score that moves smoothly where accuracy is still at chance (OLMES, BPB)."""

from __future__ import annotations

import math

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Options


def _answer_bits_per_byte(record: Record, options: Options) -> float:
    """Of several right answers the most probable a byte."""
    right = [record.answers[place] for place in record.gold]
    return min(-answer.total / math.log(2) / answer.bytes for answer in right)


METRICS = (
    ItemMean(
        "answer_bits_per_byte",
        "bits a byte of the right answer, mean over items",
        ("choice",),
        ("answers", "gold"),
        higher_is_better=False,
        bounds=(0.0, math.inf),
        value=_answer_bits_per_byte,
    ),
)
