"""What is held out beside what is trained on."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from data_pipeline.base.errors import UserError
from data_pipeline.finite.heldout import EvaluationSet
from data_pipeline.finite.samples import IndexedSamples

_LOOKED_AT = 100_000
"""Most held-out samples whose labels are compared."""


def require_labels_in_training(training: IndexedSamples, held_out: EvaluationSet) -> None:
    """Raise UserError for a label of held-out samples that no training sample has.

    Where there is none, only as many training samples are read as it takes to meet each label.
    """
    objective = held_out.objective
    if not objective.closed_labels:
        return
    size = min(len(held_out), _LOOKED_AT)
    labels = Counter(label for number in range(size) for label in objective.classes(held_out.samples([number])[0]))
    missing, met = set(labels), Counter[str]()
    for sample in training.each():
        if not missing:
            return
        classes = objective.classes(sample)
        met.update(classes)
        missing.difference_update(classes)
    if not missing:
        return
    label = next(label for label in labels if label in missing)
    known = ", ".join(map(repr, islice(met, 12))) or "none at all"
    raise UserError(
        f"{labels[label]} of {size:,} held-out samples have the label {label!r}, which no training sample has (they"
        f" have {known}); add such records to data.sources, or leave them out of what is held out"
    )
