"""One evaluation of a model on a task, as comparisons see it, whatever files it was read from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from data_pipeline.base.errors import UserError, about
from llmscale.evaluate.artefact import Artefact, Record

Places = Sequence[int]
Statistic = Callable[[list[int]], float]
"""A figure of the items at these places."""


@dataclass(frozen=True)
class MetricFacts:
    """What a comparison must know of a metric."""

    name: str
    higher_is_better: bool
    bounds: tuple[float, float] | None
    """The least and the largest possible value, where there are any."""
    is_mean: bool
    """Whether the figure is the mean of items' values."""


class Scored(ABC):
    """An evaluation of one model on one task."""

    path: str
    task: str
    metrics: list[str]
    """Those that there are, the one that the task is shown by before all."""
    conditions: dict[str, str]
    """How items were asked, which should be the same for models that are compared."""

    @property
    @abstractmethod
    def items(self) -> list[str]:
        """The digest of each item."""

    @property
    @abstractmethod
    def clusters(self) -> list[str] | None:
        """The cluster of each item, where there are any."""

    @abstractmethod
    def facts(self, metric: str) -> MetricFacts:
        """Raises UserError where there is no such metric."""

    @abstractmethod
    def item_value(self, metric: str, place: int) -> float | None:
        """The value of an item; None where it has none alone. Raises UserError where it cannot be computed."""

    @abstractmethod
    def statistic(self, metric: str, places: Places, other: Scored, other_places: Places) -> Statistic:
        """The figure of these items of this evaluation followed by those of another one, by their place in both."""

    @abstractmethod
    def describe(self, place: int) -> str:
        """What the model said of an item."""

    def values(self, metric: str, places: Places) -> list[float]:
        """Values of items, all finite; raises UserError where one is not."""
        values = [self.item_value(metric, place) for place in places]
        for place, value in zip(places, values, strict=True):
            if value is None or not math.isfinite(value):
                raise UserError(
                    f"{self.path}: {metric} of item {self.items[place]} is {value}, with which nothing can be compared;"
                    " name another one by --metric"
                )
        return [float(value) for value in values if value is not None]


class ScoredArtefact(Scored):
    """An evaluation of this project."""

    def __init__(self, artefact: Artefact) -> None:
        self.path, self.task = artefact.path, artefact.meta.task
        self.metrics = artefact.meta.metrics
        self.kind = artefact.meta.kind
        self.checkpoint = artefact.meta.checkpoint
        self.records = artefact.records
        self.conditions = {"number of few-shot examples": str(artefact.meta.few_shot), "scorer": artefact.meta.scorer}

    @cached_property
    def items(self) -> list[str]:
        return [record.item for record in self.records]

    @cached_property
    def clusters(self) -> list[str] | None:
        if all(record.cluster is None for record in self.records):
            return None
        # An item without a cluster among others is one of its own, with a name that no other has.
        return [f"\0{record.number}" if record.cluster is None else record.cluster for record in self.records]

    def facts(self, metric: str) -> MetricFacts:
        from llmscale.evaluate.metrics import metric_of
        from llmscale.evaluate.metrics.base import ItemMean

        with about(self.path):
            chosen, _ = metric_of(metric, kind=self.kind)
        return MetricFacts(metric, chosen.higher_is_better, chosen.bounds, isinstance(chosen, ItemMean))

    def item_value(self, metric: str, place: int) -> float | None:
        from llmscale.evaluate.metrics import per_item

        with about(self.path):
            return per_item(metric, self.records[place])

    def statistic(self, metric: str, places: Places, other: Scored, other_places: Places) -> Statistic:
        from llmscale.evaluate.metrics import metric_of

        if not isinstance(other, ScoredArtefact):
            raise UserError(f"{metric} cannot be computed of {other.path}; name another metric by --metric")
        chosen, options = metric_of(metric, kind=self.kind)
        records = []
        for scored, some in ((self, places), (other, other_places)):
            with about(scored.path):
                for place in some:
                    chosen.check(scored.records[place])
            records += [scored.records[place] for place in some]
        return chosen.statistic(records, options)

    def describe(self, place: int) -> str:
        return _said(self.records[place])


def _said(record: Record) -> str:
    if record.generated:
        return " ".join(record.generated[0].split())
    scores = [answer.total for answer in record.answers] or record.probabilities
    if len(scores) > 1:
        best = max(range(len(scores)), key=scores.__getitem__)
        return f"answer {best} of {len(scores)} (right: {', '.join(map(str, record.gold))})"
    return f"{scores[0]:.2f} nats" if scores else ""
