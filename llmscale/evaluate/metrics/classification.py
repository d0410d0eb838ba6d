"""Figures of the whole confusion matrix of right and predicted labels: Matthews's correlation and F1.

Equal to scikit-learn's, from counts, since an interval asks for them hundreds of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import Corpus, Option, Options, Statistic
from llmscale.evaluate.metrics.choices import scores


def right_and_predicted(record: Record) -> tuple[int, int]:
    """The right label and the predicted one: the first of those with the greatest score.

    Of several right labels the one that was predicted, else the first.
    """
    values = scores(record)
    predicted = values.index(max(values))
    return (predicted if predicted in record.gold else record.gold[0]), predicted


def _counts(pairs: np.ndarray, labels: int) -> np.ndarray:
    """Counts [right label, predicted label]."""
    cells = np.bincount(pairs[:, 0] * labels + pairs[:, 1], minlength=labels * labels)
    return cells.reshape(labels, labels)


def matthews(counts: np.ndarray) -> float:
    """Matthews's correlation for any number of labels (Gorodkin 2004, R_K); 0 where one side is constant."""
    right, predicted = counts.sum(axis=1).astype(float), counts.sum(axis=0).astype(float)
    total = float(counts.sum())
    covariance = np.trace(counts) * total - right @ predicted
    spread = (total**2 - right @ right) * (total**2 - predicted @ predicted)
    return float(covariance / math.sqrt(spread)) if spread else 0.0


def _f1_by_label(counts: np.ndarray) -> np.ndarray:
    """2 hits / (right + predicted) of each label, and 0 where it never occurs."""
    occurrences = counts.sum(axis=1) + counts.sum(axis=0)
    return 2 * np.diag(counts) / np.maximum(occurrences, 1)


def _macro_f1(counts: np.ndarray, options: Options) -> float:
    """The mean over labels that are right or predicted anywhere."""
    occurs = counts.sum(axis=1) + counts.sum(axis=0) > 0
    return float(_f1_by_label(counts)[occurs].mean())


def _micro_f1(counts: np.ndarray, options: Options) -> float:
    """Hits over items: each has one label, so that precision, recall and accuracy are the same."""
    return float(np.trace(counts) / counts.sum())


def _binary_f1(counts: np.ndarray, options: Options) -> float:
    positive = options["positive"]
    if positive >= len(counts):
        raise UserError(
            f"option positive of metric binary_f1 is {positive}, and items have {len(counts)} labels; "
            f"give a number from 0 to {len(counts) - 1}"
        )
    return float(_f1_by_label(counts)[positive])


def _of_counts(figure: Callable[[np.ndarray, Options], float]) -> Callable[[Sequence[Record], Options], Statistic]:
    def prepare(records: Sequence[Record], options: Options) -> Statistic:
        pairs = np.array([right_and_predicted(record) for record in records])
        labels = max(len(scores(record)) for record in records)
        return lambda places: figure(_counts(pairs[np.asarray(places)], labels), options)

    return prepare


_KINDS, _NEEDS = ("classify", "choice"), ("choices", "gold")
METRICS = (
    Corpus(
        "matthews",
        "Matthews's correlation of right and predicted labels (CoLA)",
        _KINDS,
        _NEEDS,
        bounds=(-1.0, 1.0),
        prepare=_of_counts(lambda counts, options: matthews(counts)),
    ),
    Corpus("macro_f1", "mean F1 of the labels", _KINDS, _NEEDS, prepare=_of_counts(_macro_f1)),
    Corpus("micro_f1", "F1 of all decisions together", _KINDS, _NEEDS, prepare=_of_counts(_micro_f1)),
    Corpus(
        "binary_f1",
        "F1 of one label, the option positive (MRPC, QQP, AFQMC)",
        _KINDS,
        _NEEDS,
        options={"positive": Option(1, least=0)},
        prepare=_of_counts(_binary_f1),
    ),
)
