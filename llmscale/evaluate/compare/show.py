"""Comparisons as a table, as items, as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.base.records import strict
from data_pipeline.base.terminal import visible
from llmscale.evaluate.compare.pairs import Comparison
from llmscale.evaluate.statistics import Interval

COLOURS = {"better": "green", "worse": "red", "equal": "blue", "cannot tell": "yellow"}
_WIDTH = 160
"""Columns of a table that is written to a file."""


def show(comparisons: Sequence[Comparison], level: float) -> None:
    """Print a table of each model beside the first, then what the columns mean."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    for second in dict.fromkeys(comparison.second for comparison in comparisons):
        chosen = [comparison for comparison in comparisons if comparison.second == second]
        console.print(_table(chosen))
        for comparison in chosen:
            _show_disagreements(console, comparison)
    console.print(
        Text(
            f"Differences are B - A with their {100 * level:g} % intervals, each alone; p and verdicts hold for all"
            f" rows together ({len(comparisons)}, Holm).",
            style="dim",
        )
    )


def _table(comparisons: Sequence[Comparison]) -> Table:
    first = comparisons[0]
    table = Table(box=box.SIMPLE_HEAD, title=Text(visible(f"B {first.second}\nA {first.first}")), title_justify="left")
    table.title_style = "bold"
    noisy = any(comparison.noise is not None for comparison in comparisons)
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("items", "A", "B", "B - A", "B > A", "B < A", "p", *(["noise of training"] if noisy else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict on B", overflow="fold", min_width=24)
    for comparison in comparisons:
        table.add_row(*_cells(comparison, noisy))
    return table


def _cells(comparison: Comparison, noisy: bool) -> list[Text]:
    difference, verdict = comparison.difference, comparison.verdict
    items = f"{difference.n:,}"
    if difference.clusters != difference.n:
        items += f" in {difference.clusters:,}"
    # A corpus' figure has no items that are larger or smaller.
    counts = [f"{count:,}" if comparison.larger or comparison.smaller else "" for count in _counts(comparison)]
    cells = [
        comparison.task,
        comparison.metric + ("" if comparison.higher_is_better else " (less is better)"),
        items,
        *(number(figure.value) for figure in comparison.figures),
        f"{_signed(difference.value)} {_ends(difference)}",
        *counts,
        f"{verdict.p_value:.2g}",
        *([_ends(comparison.noise) if comparison.noise else ""] if noisy else []),
    ]
    styled = Text(verdict.sentence, style=COLOURS[verdict.word])
    return [*(Text(visible(cell)) for cell in cells), styled]


def _counts(comparison: Comparison) -> tuple[int, int]:
    return comparison.larger, comparison.smaller


def _show_disagreements(console: Console, comparison: Comparison) -> None:
    if not comparison.disagreements:
        return
    title = f"{comparison.task}, {comparison.metric}: items on which A and B differ most"
    table = Table(box=box.SIMPLE_HEAD, title=Text(visible(title), style="bold"), title_justify="left")
    table.add_column("item", no_wrap=True, max_width=18)
    for name in ("A", "B"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("A said", "B said"):
        table.add_column(name, overflow="fold")
    for disagreement in comparison.disagreements:
        cells = [disagreement.item, *map(number, disagreement.scores), *disagreement.said]
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)


def as_json(comparisons: Sequence[Comparison], level: float) -> dict[str, Any]:
    """All figures, with null where a number is not finite."""
    rows = []
    for comparison in comparisons:
        row = asdict(comparison)
        row["verdict"] |= {"sentence": comparison.verdict.sentence}
        rows.append(row)
    return dict(strict({"level": level, "comparisons": rows}))


def number(value: float) -> str:
    """Four digits, or as many as a figure of that size has before the point."""
    if not math.isfinite(value):
        return "?" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    digits = 4 if abs(value) < 10 else 2
    return f"{value:,.{digits}f}"


def _signed(value: float) -> str:
    return number(value) if value < 0 else f"+{number(value)}"


def _ends(interval: Interval) -> str:
    return f"[{_signed(interval.low)}, {_signed(interval.high)}]"
