"""Pictures of tasks: scores along a run with bands, and how far probabilities can be believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from llmscale.report.figures import MUTED, PALETTE, PAPER, SIZE, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A score after a step."""

    step: int
    value: float
    low: float
    high: float
    """May be infinite."""


def curve_figure(task: str, metric: str, curves: dict[str, list[Point]]) -> Figure:
    """Scores of runs by steps, with bands that hold for all steps of a run at once."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, axes = _axes(task, f"{metric}, with a band that holds at all steps together")
    names = short_names(list(curves))
    for number, (name, points) in enumerate(zip(names, curves.values(), strict=True)):
        if not points:
            continue
        colour = PALETTE[number % len(PALETTE)]
        steps = [point.step for point in points]
        finite = [point for point in points if math.isfinite(point.low) and math.isfinite(point.high)]
        axes.fill_between(
            [point.step for point in finite], [point.low for point in finite], [point.high for point in finite],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
        label = name if len(curves) > 1 else None
        axes.plot(
            steps, [point.value for point in points], "o-", color=colour, linewidth=1.7, markersize=4, label=label
        )
    axes.set_xlabel("optimizer steps", loc="right", fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    _legend(axes, len(curves))
    return figure


def calibration_figure(task: str, tables: dict[str, list[tuple[float, float, int]]]) -> Figure:
    """How often the most probable answer is right (second), by its probability (first), of so many items (third)."""
    figure, axes = _axes(f"{task}: calibration", "share of right answers; the larger a point, the more items")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2.5)))
    most = max((count for table in tables.values() for _, _, count in table), default=1)
    names = short_names(list(tables))
    for number, (name, table) in enumerate(zip(names, tables.values(), strict=True)):
        colour = PALETTE[number % len(PALETTE)]
        x, y = [row[0] for row in table], [row[1] for row in table]
        axes.plot(x, y, color=colour, linewidth=1.2, label=name if len(tables) > 1 else None)
        axes.scatter(x, y, s=[10 + 70 * row[2] / most for row in table], color=colour, edgecolor=PAPER, linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability of the answer", loc="right", fontsize=9)
    _legend(axes, len(tables))
    return figure


def _axes(title: str, unit: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=SIZE, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="none")
    for text, height, size, weight in ((title, 27, 12.5, "bold"), (unit, 10, 9, "normal")):
        axes.annotate(
            text, (0.018, 1), (0, height), xycoords=("figure fraction", "axes fraction"), textcoords="offset points",
            fontsize=size, fontweight=weight, color=MUTED if size < 10 else None,
        )  # fmt: skip
    axes.margins(x=0.02)
    return figure, axes


def _legend(axes: Axes, runs: int) -> None:
    if runs > 1:
        axes.legend(loc="best", handlelength=1.8).set_in_layout(False)
