"""Figures of artefacts, as a table or as JSON. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipeline.base.errors import UserError, about
from data_pipeline.base.records import strict
from llmscale.evaluate.artefact import Artefact, Record
from llmscale.evaluate.compare.models import Model
from llmscale.evaluate.contamination.effect import Effect, effects_of
from llmscale.evaluate.contamination.seen_items import Seen
from llmscale.evaluate.metrics import Figure, figure_of
from llmscale.evaluate.statistics import exact_interval
from llmscale.evaluate.tasks import Suite


@dataclass(frozen=True)
class TaskFigures:
    """What an artefact comes to."""

    artefact: Artefact
    figures: list[Figure]
    """The main one first."""
    without_seen: list[Figure] = field(default_factory=list)
    """The same of the items that training has not seen; none where nobody has looked, or all were seen."""
    effects: list[Effect] = field(default_factory=list)
    """What having been seen did, where an earlier checkpoint is known."""

    def as_json(self) -> dict[str, Any]:
        """All of it, with null where a number is not finite."""
        meta = self.artefact.meta
        seen = {} if self.artefact.seen is None else {"contamination": self._contamination(self.artefact.seen)}
        return strict(  # type: ignore[no-any-return]
            {
                "task": meta.task,
                "kind": meta.kind,
                "items": len(self.artefact.records),
                "few_shot": meta.few_shot,
                "scorer": meta.scorer,
                "exactness": meta.exactness,
                "windowed": _windowed(self.artefact.records),
                "checkpoint": meta.checkpoint,
                "artefact": self.artefact.path,
                "metrics": {figure.name: asdict(figure) for figure in self.figures},
                **seen,
            }
        )

    def _contamination(self, seen: Seen) -> dict[str, Any]:
        chance = exact_interval(seen.controls_found, seen.controls) if seen.controls else None
        return {
            **asdict(seen),
            "false_match_rate": None if chance is None else asdict(chance),
            "without_seen": {figure.name: asdict(figure) for figure in self.without_seen},
            "effects": [asdict(effect) for effect in self.effects],
        }


def figures_of(artefact: Artefact, metrics: Sequence[str] = (), before: Model | None = None) -> TaskFigures:
    """The metrics of an artefact: those named, or else the task's own.

    Args:
        before: an earlier checkpoint, for what it did to items that training has seen them.

    Raises:
        UserError: a metric that is not known or does not fit, or an artefact without what it needs; it is named.
    """
    meta = artefact.meta
    names = metrics or meta.metrics

    def figures(records: Sequence[Record]) -> list[Figure]:
        return [figure_of(name, records, kind=meta.kind) for name in names]

    unseen = [record for record in artefact.records if "seen" not in record.flags]
    with about(artefact.path):
        if not artefact.records:
            raise UserError("it has no item yet; let its evaluation go on, by the command that began it")
        without = figures(unseen) if 0 < len(unseen) < len(artefact.records) else []
        whole = figures(artefact.records)
    effects = effects_of(before, artefact, metrics) if before is not None and artefact.seen is not None else []
    return TaskFigures(artefact, whole, without, effects)


def suite_means(suite: Suite, results: Sequence[TaskFigures]) -> dict[str, float]:
    """A suite's means of its tasks' main metrics: over tasks, each counting the same, and over items."""
    members = [each for each in results if each.artefact.meta.task in suite.tasks]
    values = [(each.figures[0].value, len(each.artefact.records)) for each in members]
    return {
        "macro": sum(value for value, _ in values) / len(values),
        "micro": sum(value * count for value, count in values) / sum(count for _, count in values),
    }


def show(results: Sequence[TaskFigures], suites: Sequence[Suite] = ()) -> None:
    """Print a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "metric", "value", "95 % interval", "items"):
        table.add_column(name, justify="right" if name in ("value", "items") else "left", no_wrap=True)
    table.add_column("notes", overflow="fold")
    for each in results:
        notes = _notes(each)
        for number, figure in enumerate(each.figures):
            table.add_row(
                each.artefact.meta.task if number == 0 else "",
                figure.name,
                _number(figure.value),
                f"{_number(figure.low)} to {_number(figure.high)}",
                f"{figure.n:,}" if number == 0 else "",
                notes if number == 0 else "",
            )
            if figure.macro is not None and number == 0:
                interval = f"{_number(figure.macro.low)} to {_number(figure.macro.high)}"
                groups = f"mean of {len(figure.by_group or {})} groups"
                table.add_row("", groups, _number(figure.macro.value), interval, "", "")
        for figure in each.without_seen:
            interval = f"{_number(figure.low)} to {_number(figure.high)}"
            table.add_row("  not seen", figure.name, _number(figure.value), interval, f"{figure.n:,}", "")
        for effect in each.effects:
            gain = effect.gain
            interval = f"{_number(gain.low)} to {_number(gain.high)}"
            note = f"gain over that of {effect.unseen:,} items not seen"
            table.add_row(
                f"  seen, {effect.which}", effect.metric, _number(gain.value), interval, f"{effect.seen:,}", note
            )
    for suite in suites:
        means = suite_means(suite, results)
        table.add_row(suite.name, "mean of tasks", _number(means["macro"]), "", "", "")
        table.add_row("", "mean of items", _number(means["micro"]), "", "", "")
    console = Console()
    # Figures are never cut, whatever the terminal's width.
    console.width = max(console.width, 120)
    console.print(table)


def as_json(results: Sequence[TaskFigures], suites: Sequence[Suite] = ()) -> str:
    """One JSON object."""
    value = {
        "tasks": [each.as_json() for each in results],
        "suites": {suite.name: suite_means(suite, results) for suite in suites},
    }
    return json.dumps(strict(value), allow_nan=False, ensure_ascii=False)


def _notes(each: TaskFigures) -> str:
    meta = each.artefact.meta
    windowed = _windowed(each.artefact.records)
    notes = [
        f"{meta.few_shot} examples" if meta.few_shot else "",
        f"{windowed} items cut to the context" if windowed else "",
        f"at most {meta.limited} items" if meta.limited is not None else "",
        "" if meta.exactness == "exact" else f"within {meta.exactness}",
        _seen_note(each.artefact.seen),
    ]
    return "; ".join(filter(None, notes))


def _seen_note(seen: Seen | None) -> str:
    if seen is None:
        return ""
    answered = sum(item.answered for item in seen.items)
    short = f", {len(seen.short):,} too short to tell" if seen.short else ""
    chance = f"{seen.controls_found:,} of {seen.controls:,} controls"
    return f"{len(seen.items):,} items seen in {seen.steps:,} steps, {answered:,} with answer ({chance}){short}"


def _windowed(records: Sequence[Record]) -> int:
    return sum("windowed" in record.flags for record in records)


def _number(value: float) -> str:
    if abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
