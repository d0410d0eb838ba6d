"""A model on one task, on the items that are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmscale.evaluate.compare.scored import Scored, Statistic


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the places in it of the items that are compared, in one order for all evaluations."""

    scored: Scored
    places: list[int]


@dataclass(frozen=True)
class Side:
    """A model by its repeats: seeds, which are one model together, or checkpoints, of which the last is the model and
    the others show its noise."""

    repeats: list[Evaluated]
    averaged: bool
    """Whether the repeats are one model together."""

    @property
    def model(self) -> list[Evaluated]:
        """The repeats that the model is."""
        return self.repeats if self.averaged else self.repeats[-1:]

    @property
    def items(self) -> list[str]:
        """Digest of each item."""
        last = self.repeats[-1]
        return [last.scored.items[place] for place in last.places]

    @property
    def clusters(self) -> list[str] | None:
        """Cluster of each item."""
        last = self.repeats[-1]
        clusters = last.scored.clusters
        return None if clusters is None else [clusters[place] for place in last.places]

    def values(self, metric: str) -> list[float]:
        """Value of each item, the mean over seeds; raises UserError where an item has none."""
        table = [evaluated.scored.values(metric, evaluated.places) for evaluated in self.model]
        return [float(value) for value in np.mean(table, axis=0)]

    def have_values(self, metric: str) -> bool:
        """Whether each item has a value alone."""
        return all(
            evaluated.scored.item_value(metric, place) is not None
            for evaluated in self.model
            for place in evaluated.places
        )

    def figures(self, metric: str, is_mean: bool) -> list[float]:
        """The figure of each repeat, in the order of training."""
        if is_mean:
            return [float(np.mean(each.scored.values(metric, each.places))) for each in self.repeats]
        places = list(range(len(self.repeats[0].places)))
        return [float(_statistic(metric, each, Evaluated(each.scored, []))(places)) for each in self.repeats]

    def statistic(self, metric: str, other: Side) -> Statistic:
        """The figure of items' outputs, those of this model by places from 0, and of the other after them; the mean
        over seeds, the k-th of one beside the k-th of the other."""
        ours, theirs = self.model, other.model
        count = max(len(ours), len(theirs))
        statistics = [_statistic(metric, ours[seed % len(ours)], theirs[seed % len(theirs)]) for seed in range(count)]
        return lambda places: float(np.mean([statistic(places) for statistic in statistics]))

    def said(self, item: int) -> str:
        """What the model said of an item."""
        last = self.repeats[-1]
        return last.scored.describe(last.places[item])


def _statistic(metric: str, first: Evaluated, second: Evaluated) -> Statistic:
    return first.scored.statistic(metric, first.places, second.scored, second.places)
