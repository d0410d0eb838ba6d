"""Accuracy: whether the answer of the greatest score is right; the score is a log-probability, by different lengths.

Answers that tie share the item, see `share_of_best`; lm-eval takes the first of them.
"""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Answer, Record
from llmscale.evaluate.metrics.base import ItemMean, Option, Options
from llmscale.evaluate.metrics.choices import scores, share_of_best

_DELIMITER = {"delimiter": Option(1, least=0)}
"""Characters of white space that answers begin with and that lengths leave out."""


def _accuracy(record: Record, options: Options) -> float:
    return share_of_best(scores(record), record.gold)


def _mutual_information(record: Record, options: Options) -> float:
    """Log-probability by the question, beyond that after a neutral context (Holtzman et al. 2021, PMI-DC)."""
    answers = zip(record.answers, record.neutral, strict=True)
    return share_of_best([answer.total - neutral for answer, neutral in answers], record.gold)


def _by_length(length: Callable[[Answer], int]) -> Callable[[Record, Options], float]:
    def accuracy(record: Record, options: Options) -> float:
        without = options.get("delimiter", 0)
        values = []
        for place, answer in enumerate(record.answers):
            if length(answer) <= without:
                raise UserError(
                    f"answer {place} of item {record.number} has length {length(answer)}, which the option "
                    f"delimiter={without} leaves nothing of; set delimiter to the white space that answers begin with"
                )
            values.append(answer.total / (length(answer) - without))
        return share_of_best(values, record.gold)

    return accuracy


def _normalised(name: str, summary: str, length: Callable[[Answer], int], options: dict[str, Option]) -> ItemMean:
    return ItemMean(
        name, summary, ("choice",), ("choices", "answers", "gold"), options=options, value=_by_length(length)
    )


METRICS = (
    ItemMean(
        "accuracy",
        "the most probable answer or label is right (lm-eval's acc)",
        ("choice", "classify"),
        ("choices", "gold"),
        value=_accuracy,
    ),
    ItemMean(
        "accuracy_pmi",
        "accuracy by log-probability less that after the neutral context (lm-eval's acc_mutual_info)",
        ("choice",),
        ("choices", "answers", "gold", "neutral"),
        value=_mutual_information,
    ),
    _normalised("accuracy_per_token", "accuracy by mean log-probability of tokens", lambda a: len(a.ids), {}),
    _normalised("accuracy_per_character", "accuracy by log-probability a character", lambda a: a.characters, {}),
    _normalised("accuracy_per_byte", "accuracy by log-probability a byte", lambda a: a.bytes, {}),
    _normalised(
        "acc_norm",
        "lm-eval's acc_norm: by characters without the space that answers begin with",
        lambda a: a.characters,
        _DELIMITER,
    ),
    _normalised(
        "acc_bytes",
        "lm-eval's acc_bytes: by bytes without the space that answers begin with",
        lambda a: a.bytes,
        _DELIMITER,
    ),
)
