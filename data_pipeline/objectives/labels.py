"""Labels of records, and values of records as messages show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SHOWN_LABELS = 12
_SHOWN = 60
"""Characters."""


def written(value: Any) -> str:
    """A value as messages show it."""
    text = _json(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def output_of(value: Any, outputs: Mapping[str, int], what: str) -> int:
    """The output of a label, which is a text or any other JSON value.

    Args:
        outputs: of `objective.labels`, by label.
        what: what messages call it.

    Raises:
        ValueError: there is no such label.
    """
    label = value if isinstance(value, str) else _json(value)
    if label not in outputs:
        labels = list(outputs)
        known = ", ".join(map(repr, labels[:_SHOWN_LABELS]))
        near = [known for known in labels if _plain(known) == _plain(label)]
        hint = f" ({near[0]!r} differs by case, spaces or decimals alone)" if near else ""
        more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
        raise ValueError(
            f"{what} is {label[:_SHOWN]!r}, but objective.labels has {known}{more}{hint}; correct the record, or add it"
            f" to objective.labels"
        )
    return outputs[label]


def _plain(label: str) -> str:
    return label.strip().casefold().removesuffix(".0")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
