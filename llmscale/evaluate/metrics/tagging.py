"""Tags of words: entities that are found whole (the shared task of CoNLL 2000, conlleval), and words labelled right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.base.tags import entities
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import Corpus, Option, Options, Ratio, Statistic

_AVERAGES = ("micro", "macro")


def entity_counts(right: Sequence[str], given: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """By type of entity: how many are found (type and both ends right), how many there are, and how many are given."""
    known, said = set(entities(right)), set(entities(given))
    return {
        kind: (
            sum(entity[0] == kind for entity in known & said),
            sum(entity[0] == kind for entity in known),
            sum(entity[0] == kind for entity in said),
        )
        for kind in {entity[0] for entity in known | said}
    }


def _f1(counts: np.ndarray) -> np.ndarray:
    """2 found / (there + given) of (..., 3) counts; 0 where there is nothing."""
    both = counts[..., 1] + counts[..., 2]
    return np.where(both > 0, 2 * counts[..., 0] / np.maximum(both, 1), 0.0)


def _entity_f1(records: Sequence[Record], options: Options) -> Statistic:
    found = [entity_counts(record.references, record.generated) for record in records]
    kinds = sorted({kind for each in found for kind in each})
    counts = np.array([[each.get(kind, (0, 0, 0)) for kind in kinds] for each in found], dtype=np.int64)
    counts = counts.reshape(len(records), len(kinds), 3)

    def figure(places: Sequence[int]) -> float:
        sums = counts[np.asarray(places)].sum(0)
        if options["average"] == "micro":
            return float(_f1(sums.sum(0)))
        occurs = sums.sum(1) > 0
        return float(_f1(sums)[occurs].mean()) if occurs.any() else 0.0

    return figure


def _right_words(record: Record, options: Options) -> tuple[float, float]:
    right = sum(one == other for one, other in zip(record.references, record.generated, strict=True))
    return float(right), float(len(record.references))


_KINDS, _NEEDS = ("tag",), ("tags",)
METRICS = (
    Corpus(
        "entity_f1",
        "F1 of entities, whose type and both ends must be right (conlleval, seqeval)",
        _KINDS,
        _NEEDS,
        options={"average": Option("micro", _AVERAGES)},
        prepare=_entity_f1,
    ),
    Ratio(
        "tag_accuracy",
        "share of words whose tag is right",
        _KINDS,
        _NEEDS,
        terms=_right_words,
        ratio_bounds=(0.0, 1.0),
    ),
)
