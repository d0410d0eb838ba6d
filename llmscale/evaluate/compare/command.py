"""`llmscale compare`, but for its options."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import visible_json
from llmscale.evaluate.compare.models import load_model
from llmscale.evaluate.compare.pairs import Comparison, compare
from llmscale.evaluate.compare.show import as_json, show


def compare_models(
    arguments: Sequence[str],
    tasks: Sequence[str],
    metrics: Sequence[str],
    level: float,
    deltas: Sequence[str],
    checkpoints: int,
    common: bool,
    items: int,
    printed_as_json: bool,
) -> list[Comparison]:
    """Compare the models that the arguments name, and print the result.

    Raises:
        UserError: fewer than two models, one named twice, a task that none has, or as `load_model` and `compare`.
    """
    if len(arguments) < 2:
        raise UserError(f"{len(arguments)} model is named, but a comparison needs at least 2; name another one")
    if not 0 < level < 1:
        raise UserError(f"--level is {level:g}, but must lie between 0 and 1; give 0.95")
    twice = [name for place, name in enumerate(arguments) if _same_as_before(name, arguments[:place])]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name different models")
    models = [load_model(argument, checkpoints, tasks) for argument in arguments]
    missing = [task for task in tasks if not any(task in model.evaluations for model in models)]
    if missing:
        raise UserError(f"no model was evaluated on {missing[0]}; name another --task, or evaluate the models on it")
    comparisons = compare(models, metrics, level, _deltas(deltas), common, items)
    if printed_as_json:
        print(visible_json(json.dumps(as_json(comparisons, level), ensure_ascii=False)), flush=True)
    else:
        show(comparisons, level)
    return comparisons


def _same_as_before(name: str, before: Sequence[str]) -> bool:
    return any(Path(name).absolute() == Path(other).absolute() for other in before)


def _deltas(given: Sequence[str]) -> dict[str, float]:
    """From "0.01" and "accuracy=0.01"; raises UserError for anything else."""
    deltas = {}
    for text in given:
        metric, _, number = text.rpartition("=")
        try:
            deltas[metric] = float(number)
        except ValueError:
            deltas[metric] = math.nan
        if not 0 < deltas[metric] < math.inf:
            raise UserError(
                f"--delta is {text!r}, but must be a number above 0, or METRIC=NUMBER such as accuracy=0.01"
            )
    return deltas
