"""A forest plot: differences of models with their intervals, a panel for each metric."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.durable import replace_file
from data_pipeline.base.errors import UserError
from llmscale.report.figures import INK, MUTED, PAPER, require_matplotlib, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"better": "#009e73", "worse": "#d55e00", "equal": "#0072b2", "cannot tell": MUTED}
"""Okabe and Ito's."""
_ROW, _PANEL, _MARGIN = 0.3, 0.75, 0.55
"""Heights in inches: of a row, of what a panel has besides, of the title."""
_WIDTH = 8.2
_LEAST_ROWS = 2.0
SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class ForestRow:
    """A difference as it is drawn."""

    task: str
    metric: str
    model: str
    """Which of several models is compared; empty where there is one."""
    value: float
    low: float
    high: float
    """May be infinite."""
    verdict: str
    """better, worse, equal or cannot tell, which decides the colour."""
    sentence: str
    higher_is_better: bool
    delta: float | None = None
    """Where smaller differences do not matter; drawn as a band, the same for a metric's rows."""


def check_picture(path: Path) -> None:
    """Raises UserError where no picture could be drawn, before anything is computed."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot is {path}, but its name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--plot is {path}, but the folder {path.parent} does not exist; make it first")
    require_matplotlib()


def draw_forest(rows: Sequence[ForestRow], path: Path, title: str, level: float) -> None:
    """Draw differences to a PNG or SVG file."""
    with style(), io.BytesIO() as picture:
        suffix = path.suffix.lower().removeprefix(".")
        forest_figure(rows, title, level).savefig(picture, format=suffix, dpi=200, **_reproducible(suffix))
        replace_file(path, picture.getvalue())


def forest_figure(rows: Sequence[ForestRow], title: str, level: float) -> Figure:
    """Differences as a figure; draw and save within `figures.style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: dict[str, list[ForestRow]] = {}
    for row in rows:
        panels.setdefault(row.metric, []).append(row)
    heights = [_PANEL + _ROW * max(_LEAST_ROWS, len(panel)) for panel in panels.values()]
    figure = Figure((_WIDTH, _MARGIN + sum(heights)), facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (metric, panel) in zip(grid[:, 0], panels.items(), strict=True):
        _draw_panel(axes, panel, metric, level)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[ForestRow], metric: str, level: float) -> None:
    delta = rows[0].delta
    finite = [end for row in rows for end in (row.value, row.low, row.high) if math.isfinite(end)]
    reach = max([abs(end) for end in finite] + ([1.25 * delta] if delta is not None else []), default=1.0) or 1.0
    axes.set_xlim(-1.08 * reach, 1.08 * reach)
    if delta is not None:
        axes.axvspan(-delta, delta, color="#0072b2", alpha=0.08, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, row in enumerate(rows):
        colour = _COLOURS[row.verdict]
        for end, marker in ((row.low, "<"), (row.high, ">")):
            if not math.isfinite(end):
                axes.plot(math.copysign(1.05 * reach, end), place, marker, color=colour, markersize=5)
        ends = [min(max(end, -1.05 * reach), 1.05 * reach) for end in (row.low, row.high)]
        axes.plot(ends, [place, place], color=colour, linewidth=2.2)
        axes.plot(row.value, place, "o", color=colour, markersize=6.5, markeredgecolor=PAPER, markeredgewidth=1)
        axes.annotate(
            row.sentence, (1, place), (8, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            va="center", fontsize=8.5, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{row.task} · {row.model}" if row.model else row.task for row in rows])
    axes.set_ylim(len(rows) - 0.4 + max(0.0, _LEAST_ROWS - len(rows)) / 2, -0.6 - max(0.0, _LEAST_ROWS - len(rows)) / 2)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    better = "right" if rows[0].higher_is_better else "left"
    axes.set_title(metric, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlabel(f"difference with {100 * level:g} % interval, better to the {better}", loc="left", fontsize=9)


def _reproducible(suffix: str) -> dict[str, Any]:
    return {"metadata": {"Date": None}} if suffix == "svg" else {}
