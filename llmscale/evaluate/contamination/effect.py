"""What having been seen did to the score of items: with and without them, and the difference in differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Artefact
from llmscale.evaluate.compare.align import aligned
from llmscale.evaluate.compare.models import Model, load_model, step_of
from llmscale.evaluate.compare.scored import Scored, ScoredArtefact
from llmscale.evaluate.compare.side import Evaluated
from llmscale.evaluate.contamination.seen_items import Seen, SeenItem
from llmscale.evaluate.statistics import Interval, groups_difference


@dataclass(frozen=True)
class Effect:
    """How much more items that were seen gained between two checkpoints than items that were not."""

    task: str
    metric: str
    which: str
    """`with answer`, or `question alone`."""
    seen: int
    """Items that were seen between the two checkpoints."""
    unseen: int
    """Items of which nothing was seen at all."""
    gain: Interval
    """Of the metric, turned so that more is better."""


def load_before(argument: str, tasks: Sequence[str]) -> Model:
    """The evaluations of an earlier checkpoint on some tasks, made before.

    Raises:
        UserError: one of the tasks was not evaluated.
    """
    model = load_model(argument, tasks=tasks)
    missing = [task for task in tasks if task not in model.evaluations]
    if missing:
        raise UserError(
            f"--before {argument} was not evaluated on {missing[0]}; do that first: llmscale eval {argument} --tasks"
            f" {missing[0]}"
        )
    return model


def effects_of(before: Model, artefact: Artefact, metrics: Sequence[str] = ()) -> list[Effect]:
    """The effect on a task, of items that were seen with their answer and of others that were.

    Args:
        before: an earlier checkpoint. What it has seen itself, where it is of the same run, counts for nothing.
        artefact: of the later checkpoint, with what was seen.
        metrics: in place of the main one of the task.

    Raises:
        UserError: other items, or a metric that items have no value of.
    """
    seen = artefact.seen
    assert seen is not None
    earlier = before.evaluations[artefact.meta.task][-1]
    first, second = aligned([earlier, ScoredArtefact(artefact)], common=False)
    since = _step_within(earlier, seen)
    numbers = [artefact.records[place].number for place in second.places]
    effects = []
    for metric in metrics or artefact.meta.metrics[:1]:
        gains, bounds = _gains(metric, first, second)
        for which, answered in (("with answer", True), ("question alone", False)):
            marks = [_mark(seen, number, answered, since) for number in numbers]
            kept = [place for place, mark in enumerate(marks) if mark is not None]
            chosen = [bool(marks[place]) for place in kept]
            if not any(chosen) or all(chosen):
                continue
            clusters = second.scored.clusters
            effects.append(
                Effect(
                    artefact.meta.task,
                    metric,
                    which,
                    sum(chosen),
                    len(chosen) - sum(chosen),
                    groups_difference(
                        [gains[place] for place in kept],
                        chosen,
                        clusters and [clusters[second.places[place]] for place in kept],
                        bounds=bounds,
                    ),
                )
            )
    return effects


def _mark(seen: Seen, number: int, answered: bool, since: int) -> bool | None:
    """Whether an item is one of those that were seen so, or of those that were not seen; None for others."""
    item: SeenItem | None = seen.by_number.get(number)
    if item is None:
        return None if number in seen.short else False
    return True if item.answered == answered and item.last > since else None


def _gains(metric: str, first: Evaluated, second: Evaluated) -> tuple[list[float], tuple[float, float] | None]:
    facts = second.scored.facts(metric)
    sign = 1 if facts.higher_is_better else -1
    before, after = (each.scored.values(metric, each.places) for each in (first, second))
    width = None if facts.bounds is None else facts.bounds[1] - facts.bounds[0]
    gains = [sign * (later - earlier) for earlier, later in zip(before, after, strict=True)]
    return gains, None if width is None else (-width, width)


def _step_within(earlier: Scored, seen: Seen) -> int:
    """The step of the earlier checkpoint, where it is of the run; 0 where it is of another."""
    if not isinstance(earlier, ScoredArtefact):
        return 0
    checkpoint = Path(earlier.checkpoint)
    step = step_of(checkpoint.name)
    own = checkpoint.parent.name == "checkpoints" and checkpoint.parents[1].resolve() == Path(seen.run).resolve()
    return step if own and step is not None else 0
