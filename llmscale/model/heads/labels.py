"""What config.json says of labels and of a classifier's dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmscale.families.hugging_face import HeadClass, HuggingFace, Settings, Unsupported


def written_labels(labels: Sequence[str]) -> dict[str, Any]:
    """The labels, in the order of the outputs."""
    return {
        "id2label": {str(output): label for output, label in enumerate(labels)},
        "label2id": {label: output for output, label in enumerate(labels)},
    }


def labels_of(settings: Settings) -> list[str]:
    """The labels of a config.json in the order of the outputs; transformers' own two where it names none."""
    named = settings.take("id2label", None, dict)
    if named is None:
        count = settings.take("num_labels", 2)
        return [f"LABEL_{output}" for output in range(count)]
    labels = [named.get(str(output)) for output in range(len(named))]
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise Unsupported(
            f"id2label is {named!s:.60}, but must name each of the outputs 0 to {len(named) - 1} by a label of its"
            f" own; repair it"
        )
    return labels  # type: ignore[return-value]


def dropout_of(settings: Settings, table: HuggingFace, known: HeadClass) -> float:
    """`classifier_dropout`; where that is null or absent what the class takes then (`hidden_dropout_prob` in BERT)."""
    if known.rate is None:
        return 0.0
    rate = settings.take("classifier_dropout", None, float, null=None)
    if rate is None and known.dropout:
        rate = settings.take(known.dropout[0], table.dropout_rate, float)
    rate = known.rate if rate is None else float(rate)
    if rate and known.drops_first:
        settings.notes.append(
            f"{known.name} drops {rate} of the values in front of its dense layer too, where llmscale drops nothing"
        )
    return rate


def written_dropout(known: HeadClass | None, rate: float) -> dict[str, Any]:
    """`classifier_dropout` of a class that has it."""
    return {} if known is None or known.rate is None else {"classifier_dropout": rate}
