"""Models beside each other on the items that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from llmscale.evaluate.compare.align import aligned
from llmscale.evaluate.compare.models import Model
from llmscale.evaluate.compare.scored import MetricFacts, Scored
from llmscale.evaluate.compare.side import Side
from llmscale.evaluate.statistics import (
    CorpusDifference,
    Difference,
    Interval,
    Verdict,
    corpus_interval,
    judge,
    mean_interval,
    paired_difference,
    training_noise,
)

ANY_METRIC = ""


@dataclass(frozen=True)
class Disagreement:
    """An item that two models score differently."""

    item: str
    scores: tuple[float, float]
    said: tuple[str, str]
    """What each model said."""


@dataclass(frozen=True)
class Comparison:
    """Two models by one metric on one task."""

    task: str
    metric: str
    higher_is_better: bool
    first: str
    """Name of the model that the other is compared with."""
    second: str
    figures: tuple[Interval, Interval]
    """Of each model alone."""
    difference: Interval
    """The second model's less the first one's."""
    larger: int
    """Items with a larger score of the second model; 0 where items have no score alone."""
    smaller: int
    test: str
    p_value: float
    """Of no difference, for this comparison alone."""
    noise: Interval | None
    """The difference with the noise of training, where that is known."""
    verdict: Verdict
    disagreements: list[Disagreement]
    """The largest first."""


@dataclass(frozen=True)
class _Pair:
    """A comparison that is not judged yet."""

    task: str
    facts: MetricFacts
    models: tuple[Model, Model]
    figures: tuple[Interval, Interval]
    difference: Difference
    noise: Interval | None
    disagreements: list[Disagreement]


def compare(
    models: Sequence[Model],
    metrics: Sequence[str] = (),
    level: float = 0.95,
    deltas: Mapping[str, float] | None = None,
    common: bool = False,
    disagreements: int = 0,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every model with the first, on each task that both were evaluated on.

    Args:
        metrics: those to compare by; without any, the one that each task is shown by.
        level: of intervals, and of all verdicts together.
        deltas: by metric, the least difference that matters; that of `ANY_METRIC` for those that are not named.
        common: compare on the items that both have, where they do not have the same.
        disagreements: how many items to list that two models score differently.
        seed: of draws of sign flips and exchanges.

    Raises:
        UserError: no task in common, other items, or a metric that there is not.
    """
    pairs = [
        pair
        for second in models[1:]
        for pair in _pairs((models[0], second), metrics, level, common, disagreements, seed)
    ]
    verdicts = judge(
        [pair.difference for pair in pairs],
        [pair.facts.higher_is_better for pair in pairs],
        level,
        [_delta(deltas or {}, pair.facts.name) for pair in pairs],
        [pair.noise for pair in pairs],
    )
    return [_comparison(pair, verdict, level) for pair, verdict in zip(pairs, verdicts, strict=True)]


def _pairs(
    models: tuple[Model, Model], metrics: Sequence[str], level: float, common: bool, disagreements: int, seed: int
) -> Iterator[_Pair]:
    for task in _tasks(*models):
        ours, theirs = (model.evaluations[task] for model in models)
        _warn_of_conditions(task, ours[-1], theirs[-1])
        evaluated = aligned([*ours, *theirs], common)
        sides = (
            Side(evaluated[: len(ours)], models[0].repeats == "seeds"),
            Side(evaluated[len(ours) :], models[1].repeats == "seeds"),
        )
        for metric in metrics or ours[-1].metrics[:1]:
            facts = ours[-1].facts(metric)
            theirs[-1].facts(metric)
            difference = _difference(facts, *sides, seed)
            repeats = "seeds" if sides[0].averaged or sides[1].averaged else "checkpoints"
            histories = [side.figures(metric, facts.is_mean) for side in sides]
            yield _Pair(
                task,
                facts,
                models,
                (_figure(facts, sides[0], level, seed), _figure(facts, sides[1], level, seed)),
                difference,
                training_noise(histories[1], histories[0], "seeds" if repeats == "seeds" else "checkpoints", level),
                _disagreements(metric, *sides, disagreements),
            )


def _delta(deltas: Mapping[str, float], metric: str) -> float | None:
    return deltas.get(metric, deltas.get(ANY_METRIC))


def _tasks(first: Model, second: Model) -> list[str]:
    shared = [task for task in first.evaluations if task in second.evaluations]
    if not shared:
        tasks = [", ".join(model.evaluations) or "no such task" for model in (first, second)]
        raise UserError(
            f"{first.name} was evaluated on {tasks[0]} and {second.name} on {tasks[1]}; evaluate both on one task"
        )
    for model, other in ((first, second), (second, first)):
        alone = [task for task in model.evaluations if task not in other.evaluations]
        if alone:
            tell(f"warning: {', '.join(alone)}: left out, since only {model.name} was evaluated on it")
    return shared


def _warn_of_conditions(task: str, first: Scored, second: Scored) -> None:
    for name in first.conditions.keys() & second.conditions.keys():
        ours, theirs = first.conditions[name], second.conditions[name]
        if ours != theirs:
            tell(f"warning: {task}: another {name}: {ours} in {first.path}, {theirs} in {second.path}")


def _difference(facts: MetricFacts, first: Side, second: Side, seed: int) -> Difference:
    """The second model less the first."""
    metric = facts.name
    if facts.is_mean:
        return paired_difference(second.values(metric), first.values(metric), first.clusters, seed=seed)
    bounds = None
    if facts.bounds is not None:
        width = facts.bounds[1] - facts.bounds[0]
        bounds = (-width, width)
    larger = smaller = 0
    if first.have_values(metric) and second.have_values(metric):
        pairs = list(zip(second.values(metric), first.values(metric), strict=True))
        larger, smaller = sum(ours > theirs for ours, theirs in pairs), sum(ours < theirs for ours, theirs in pairs)
    statistic = second.statistic(metric, first)
    return CorpusDifference(statistic, len(first.items), first.clusters, seed, bounds, larger, smaller)


def _figure(facts: MetricFacts, side: Side, level: float, seed: int) -> Interval:
    """Of one model alone."""
    if facts.is_mean:
        return mean_interval(side.values(facts.name), side.clusters, level, facts.bounds)
    statistic = side.statistic(facts.name, side)
    return corpus_interval(statistic, len(side.items), side.clusters, level, seed, facts.bounds)


def _disagreements(metric: str, first: Side, second: Side, count: int) -> list[Disagreement]:
    if not count or not (first.have_values(metric) and second.have_values(metric)):
        return []
    scores = list(zip(first.values(metric), second.values(metric), strict=True))
    order = sorted(range(len(scores)), key=lambda item: (-abs(scores[item][0] - scores[item][1]), item))
    return [
        Disagreement(first.items[item], scores[item], (first.said(item), second.said(item)))
        for item in order[:count]
        if scores[item][0] != scores[item][1]
    ]


def _comparison(pair: _Pair, verdict: Verdict, level: float) -> Comparison:
    return Comparison(
        pair.task,
        pair.facts.name,
        pair.facts.higher_is_better,
        pair.models[0].name,
        pair.models[1].name,
        pair.figures,
        pair.difference.interval(level),
        pair.difference.better,
        pair.difference.worse,
        pair.difference.test.name,
        pair.difference.test.p_value,
        pair.noise,
        verdict,
        pair.disagreements,
    )
