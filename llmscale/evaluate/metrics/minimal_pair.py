"""Minimal pairs: whether the first, acceptable text is more probable than each other (BLiMP, Warstadt et al. 2020)."""

from __future__ import annotations

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import ItemMean, Options
from llmscale.evaluate.metrics.choices import scores, share_of_best

_GOOD = (0,)
"""Place of the acceptable text."""


def _pair_accuracy(record: Record, options: Options) -> float:
    return share_of_best(scores(record), _GOOD)


def _pair_accuracy_per_token(record: Record, options: Options) -> float:
    return share_of_best([answer.total / len(answer.ids) for answer in record.answers], _GOOD)


_KINDS, _NEEDS = ("minimal_pair",), ("choices", "answers")
METRICS = (
    ItemMean("pair_accuracy", "the acceptable text is more probable", _KINDS, _NEEDS, value=_pair_accuracy),
    ItemMean(
        "pair_accuracy_per_token",
        "the acceptable text is more probable by the mean of its tokens",
        _KINDS,
        _NEEDS,
        value=_pair_accuracy_per_token,
    ),
)
