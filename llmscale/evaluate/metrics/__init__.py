"""Metrics, computed of an artefact's records: one file each, or each family of one computation. Nothing needs torch.

A file of this folder with METRICS, a tuple of `Metric`, adds those; no other file knows of them. A metric is asked for
by its name, and its options follow there: "f1", "f1:language=zh", "pass_at_k:k=10".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.base.modules import modules_of
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import KINDS, Figure, Metric

__all__ = ["METRICS", "Figure", "Metric", "check_metric", "figure_of", "fitting", "metric_of", "per_item"]


def _listed() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for module in modules_of(__name__):
        for metric in getattr(module, "METRICS", ()):
            assert metric.name not in metrics, f"two metrics are named {metric.name}"
            metrics[metric.name] = metric
    return dict(sorted(metrics.items()))


METRICS: Mapping[str, Metric] = _listed()
"""All metrics by name."""


def fitting(kind: str) -> list[str]:
    """Names of the metrics for tasks of a kind."""
    return [name for name, metric in METRICS.items() if kind in metric.kinds]


def metric_of(
    asked: str, options: Mapping[str, Any] | None = None, kind: str | None = None
) -> tuple[Metric, dict[str, Any]]:
    """A metric and its options, from "name:option=value" and further options.

    Raises UserError for an unknown name or option, a value not allowed, and a metric that does not fit the kind.
    """
    name, *settings = asked.split(":")
    names = list(METRICS) if kind is None else fitting(kind)
    if kind is not None and not names:
        raise UserError(f"no task has the kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if name not in METRICS:
        fit = "the metrics are" if kind is None else f"those of tasks of kind {kind} are"
        raise UserError(f"there is no metric {name!r}; {fit} {', '.join(names)}")
    metric = METRICS[name]
    if name not in names:
        raise UserError(f"metric {name} does not fit tasks of kind {kind}; these do: {', '.join(names)}")
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} in metric {asked!r} is no option; write it as {name}:option=value")
        given[key] = value
    return metric, metric.with_defaults({**given, **(options or {})})


def check_metric(asked: str, kind: str) -> None:
    """Raises UserError where a task of this kind cannot ask for that metric."""
    metric_of(asked, kind=kind)


def per_item(name: str, record: Record, options: Mapping[str, Any] | None = None) -> float | None:
    """A metric of one record, or None where only many records have one.

    Raises UserError as `metric_of` does, and where the record lacks what the metric needs.
    """
    metric, settings = metric_of(name, options)
    metric.check(record)
    return metric.item_value(record, settings)


def figure_of(
    name: str, records: Sequence[Record], options: Mapping[str, Any] | None = None, kind: str | None = None
) -> Figure:
    """A metric over records, with its interval.

    Args:
        name: "name" or "name:option=value:option=value".
        records: at least one, in any order.
        options: further options; `level` (0.95) and `seed` (of the parts of a jackknife) are options of every metric.
        kind: of the task, which the metric must fit.

    Raises UserError as `metric_of` does, where a record lacks what the metric needs, and without any record.
    """
    metric, settings = metric_of(name, options, kind)
    if not records:
        raise UserError(f"metric {name} has no records to be computed of; evaluate at least one item")
    for record in records:
        metric.check(record)
    return metric.figure(records, settings, name)
