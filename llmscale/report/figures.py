"""The four pictures of a run, or of several runs in one: loss, learning rate, throughput, gradient norm.

Figures are built without pyplot, so nothing global is left behind. matplotlib comes with the extra `plots`.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.base.durable import replace_file
from data_pipeline.base.errors import UserError
from llmscale.report.curves import settled_limits, smooth, thin
from llmscale.report.record import TERMS, UNITS, RunRecord, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): tells apart under every common colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID, PAPER = "#1f2430", "#667085", "#e4e7ec", "#ffffff"
_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (6, 2)), (0, (2, 1)), (0, (6, 2, 2, 2)))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIZE = (5.2, 3.4)
_CHINESE = (
    "Noto Sans CJK",
    "Source Han Sans",
    "WenQuanYi",
    "Microsoft YaHei",
    "SimHei",
    "PingFang",
    "Hiragino Sans GB",
)
"""How fonts are called that have Chinese characters."""
NOT_FINITE = "not finite"
"""What a legend calls crosses."""
_NAME = 28
"""Most characters of a name in a legend, about."""


def require_matplotlib() -> None:
    """Raise UserError, saying how to install it, when matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("drawing needs matplotlib; install it with: pip install 'llmscale[plots]'") from None


@contextmanager
def style() -> Iterator[None]:
    """The typography of all pictures; matplotlib's settings are as before afterwards. Draw and save within it."""
    import matplotlib

    settings = {
        "font.family": ["DejaVu Sans", *_fonts_for_chinese()],
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.linewidth": 1.0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "xtick.major.pad": 6,
        "ytick.major.pad": 6,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",  # text stays text: searchable, in the page's own font
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's pictures have text as text, for which the browser has fonts.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def _fonts_for_chinese() -> list[str]:
    """Those there are on this machine, for names of runs and tasks that are Chinese."""
    from matplotlib.font_manager import fontManager

    return sorted({font.name for font in fontManager.ttflist if font.name.startswith(_CHINESE)})[:1]


def loss_figure(runs: list[RunRecord]) -> Figure:
    """Training and held-out loss; with one run the baselines of its summary too, in the same unit."""
    canvas = _Canvas(runs, "Loss", "nats per token")
    single = len(runs) == 1
    curves = []
    for index, run in enumerate(runs):
        training, held_out = run.metrics["loss"], run.evaluation["loss"].finite()
        name = canvas.name(run)
        canvas.smoothed(index, training, name or "training")
        look = {"color": PALETTE[1]} if single else {"color": _colour(index)}
        canvas.line(held_out, label=f"{name}, held out" if name else "held out", **_marked(held_out), **look)
        curves += [(canvas.x(series), series.value) for series in (training, held_out)]
    limits = settled_limits(curves)
    if limits is not None:
        if single:
            limits = canvas.reference_lines(_baseline_losses(runs[0]), limits)
        canvas.set_limits(limits)
        if single:
            canvas.note_start(runs[0].metrics["loss"].finite(), limits[1])
    return canvas.finish()


def learning_rate_figure(runs: list[RunRecord]) -> Figure:
    """The schedule as it was applied."""
    highest = max((float(run.metrics["lr"].finite().value.max(initial=0)) for run in runs), default=0.0)
    exponent = math.floor(math.log10(highest)) if highest > 0 else 0
    canvas = _Canvas(runs, "Learning rate", f"× 10{str(exponent).translate(_SUPERSCRIPTS)}")
    for index, run in enumerate(runs):
        # Equal schedules lie on one another: earlier runs show on both sides of later ones.
        width = 1.7 + 1.1 * min(len(runs) - 1 - index, 3)
        canvas.line(run.metrics["lr"], color=_colour(index), linewidth=width, label=canvas.name(run))
    canvas.from_zero()
    canvas.axes.yaxis.set_major_formatter(lambda value, _: f"{value / 10**exponent:.3g}")
    return canvas.finish()


def throughput_figure(runs: list[RunRecord]) -> Figure:
    """Target tokens per second over all ranks."""
    from matplotlib.ticker import EngFormatter

    canvas = _Canvas(runs, "Throughput", "tokens per second")
    for index, run in enumerate(runs):
        canvas.smoothed(index, run.metrics["tokens_per_second"], canvas.name(run))
    canvas.from_zero()
    canvas.axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return canvas.finish()


def gradient_norm_figure(runs: list[RunRecord]) -> Figure:
    """The norm of the whole gradient before clipping, on a logarithmic axis where it spans a decade."""
    canvas = _Canvas(runs, "Gradient norm", "before clipping")
    for index, run in enumerate(runs):
        canvas.smoothed(index, run.metrics["grad_norm"], canvas.name(run))
    values = np.concatenate([run.metrics["grad_norm"].finite().value for run in runs])
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        canvas.logarithmic()
    else:
        canvas.from_zero()
    return canvas.finish()


def term_figure(name: str, runs: list[RunRecord]) -> Figure:
    """One of `TERMS` in training, of the runs that have it."""
    canvas = _Canvas(runs, TERMS[name], UNITS[name])
    for index, run in enumerate(runs):
        canvas.smoothed(index, run.metrics[name], canvas.name(run))
    canvas.from_zero()
    return canvas.finish()


FIGURES: dict[str, Callable[[list[RunRecord]], Figure]] = {
    "loss": loss_figure,
    "learning_rate": learning_rate_figure,
    "throughput": throughput_figure,
    "gradient_norm": gradient_norm_figure,
}


def draw_all(runs: list[RunRecord]) -> dict[str, Figure]:
    """Every picture by name: those of `FIGURES`, then one for each term of the loss that a run has besides."""
    terms = [name for name in TERMS if any(name in run.terms for run in runs)]
    return {name: draw(runs) for name, draw in FIGURES.items()} | {name: term_figure(name, runs) for name in terms}


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` at a size that fits slides and documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as picture:
        figure.savefig(picture, format="png", dpi=200)
        replace_file(path, picture.getvalue())


class _Canvas:
    """One figure with one pair of axes in the project's style."""

    def __init__(self, runs: list[RunRecord], title: str, unit: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import EngFormatter, MaxNLocator

        self.runs = runs
        self._names = dict(zip([run.name for run in runs], short_names([run.name for run in runs]), strict=True))
        self.by_tokens = _compare_by_tokens(runs)
        self.figure = Figure(figsize=SIZE, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_subplot(facecolor="none")
        self._heading(title, 27, fontsize=12.5, fontweight="bold")
        self._heading(unit, 10, fontsize=9, color=MUTED)
        self.axes.set_xlabel("target tokens" if self.by_tokens else "optimizer steps", loc="right", fontsize=9)
        self.axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        self.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
        self.axes.margins(x=0.02)

    def _heading(self, text: str, height: float, **look: Any) -> None:
        """Text above the axes, `height` points up, at the figure's left edge so that pictures line up."""
        place = ("figure fraction", "axes fraction")
        self.axes.annotate(text, (0.018, 1), (0, height), xycoords=place, textcoords="offset points", **look)

    def x(self, series: Series) -> np.ndarray:
        return series.tokens if self.by_tokens else series.step

    def name(self, run: RunRecord) -> str | None:
        """What the legend calls `run`; a single run needs no legend."""
        return self._names[run.name] if len(self.runs) > 1 else None

    def line(self, series: Series, **look: Any) -> None:
        self._plot(*thin(self.x(series), series.value), **look)
        self._not_finite(series, look["color"])

    def smoothed(self, index: int, series: Series, label: str | None) -> None:
        """The smoothed curve of run number `index`; with one run the values as recorded lie behind it."""
        x, y = smooth(self.x(series), series.value)
        if len(self.runs) == 1 and y is not series.value:
            self._plot(*thin(self.x(series), series.value), color=_colour(index), linewidth=0.8, alpha=0.28)
        self._plot(x, y, color=_colour(index), linestyle=_dash(index), label=label)
        self._not_finite(series, _colour(index))

    def _plot(self, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
        if np.isfinite(y).any():
            lonely = {"marker": "o"} if np.isfinite(y).sum() == 1 else {}
            self.axes.plot(x, y, **{"linewidth": 1.7, **lonely, **look})

    def _not_finite(self, series: Series, colour: str) -> None:
        """Crosses along the upper edge where the run recorded no finite number, unless it never recorded any."""
        bad = series.where(~np.isfinite(series.value))
        if len(bad.step) in (0, len(series.step)):
            return
        x, y = thin(self.x(bad), np.full(len(bad.step), 0.98), 40)
        place = self.axes.get_xaxis_transform()
        self.axes.plot(x, y, "x", color=colour, markersize=5, transform=place, label=NOT_FINITE)

    def from_zero(self) -> None:
        """A y axis from 0 to just above all but the rarest values."""
        transform = self.axes.transData
        lines = [line.get_ydata() for line in self.axes.get_lines() if line.get_transform() == transform]
        values = np.concatenate([*lines, np.empty(0)])
        values = values[np.isfinite(values)]
        if len(values) and values.max() > 0:
            self.axes.set_ylim(0, 1.12 * float(np.quantile(values, 0.995)))

    def set_limits(self, limits: tuple[float, float]) -> None:
        low, high = limits
        if low > 0 and high > 10 * low:
            self.logarithmic()
        self.axes.set_ylim(low, high)

    def logarithmic(self) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        self.axes.set_yscale("log")
        self.axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        self.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        self.axes.yaxis.set_minor_formatter(NullFormatter())

    def reference_lines(self, levels: dict[str, float], limits: tuple[float, float]) -> tuple[float, float]:
        """Dotted lines at `levels`; returns limits that include those not far above the curves."""
        low, high = limits
        for name, level in levels.items():
            if not low < level < high + 0.6 * (high - low):
                continue
            limits = low, max(limits[1], level + 0.1 * (high - low))
            self.axes.axhline(level, color=MUTED, linewidth=1.1, linestyle=(0, (1, 2.5)))
            self._note(name, (1, level), (0, 3), self.axes.get_yaxis_transform(), ha="right", va="bottom")
        return limits

    def note_start(self, series: Series, top: float) -> None:
        """Say where a curve that begins above the axis begins."""
        if len(series.value) and series.value[0] > top:
            entry = float(self.x(series)[np.argmax(series.value <= top)])
            text = f"↑ starts at {series.value[0]:.2f}"
            self._note(text, (entry, 1), (8, 0), self.axes.get_xaxis_transform(), ha="left", va="top")

    def _note(self, text: str, at: tuple[float, float], offset: tuple[float, float], place: Any, **look: Any) -> None:
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
        self.axes.annotate(
            text, at, offset, xycoords=place, textcoords="offset points", fontsize=8.5, color=MUTED, bbox=box, **look
        )

    def finish(self) -> Figure:
        from matplotlib.lines import Line2D

        handles, labels = self.axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        if not self.axes.lines:
            self.axes.text(0.5, 0.5, "not recorded", transform=self.axes.transAxes, ha="center", color=MUTED)
            self.axes.set_yticks([])
            self.axes.set_xticks([])
        elif once and len(self.runs) == 1:
            place = {"loc": "lower right", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.1}
            self.axes.legend(once.values(), once.keys(), ncols=len(once), handlelength=1.6, columnspacing=1.4, **place)
        elif once:
            if NOT_FINITE in once:
                # One entry, after the runs, stands for the crosses of all of them.
                del once[NOT_FINITE]
                once[NOT_FINITE] = Line2D([], [], color=MUTED, marker="x", markersize=5, linestyle="none")
            legend = self.axes.legend(once.values(), once.keys(), loc="best", handlelength=1.8)
            legend.set_in_layout(False)  # it lies on the axes, which would shrink to make room for it
        return self.figure


def short_names(names: list[str]) -> list[str]:
    """Names of at most about `_NAME` characters for a legend, shortened in the middle; other names stay others.

    Long names that would come out the same have their place in the list at the end: the full ones are in the page.
    """
    half = (_NAME - 1) // 2
    short = [name if len(name) <= _NAME else f"{name[:half]}…{name[-half:]}" for name in names]
    again = {text for text in short if short.count(text) > 1}
    return [
        f"{text[: half - 2]}…{text[-half:]} ({place})" if text in again and len(name) > _NAME else text
        for place, (name, text) in enumerate(zip(names, short, strict=True), start=1)
    ]


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _dash(index: int) -> str | tuple[int, tuple[int, ...]]:
    """Runs beyond the palette repeat its colours with other dashes."""
    return _DASHES[index // len(PALETTE) % len(_DASHES)]


def _marked(series: Series) -> dict[str, Any]:
    """Markers on curves that have few points."""
    if len(series.value) > 40:
        return {}
    return {"marker": "o", "markersize": 4, "linestyle": (0, (3, 1.5)), "linewidth": 1.3}


def _compare_by_tokens(runs: list[RunRecord]) -> bool:
    """Whether steps of these runs mean different numbers of tokens, so that tokens are the fair axis."""
    rates = []
    for run in runs:
        loss = run.metrics["loss"]
        known = np.isfinite(loss.tokens) & (loss.step > 0)
        if not known.any():
            return False
        rates.append(float(loss.tokens[known][-1] / loss.step[known][-1]))
    return max(rates) > 1.05 * min(rates)


def _baseline_losses(run: RunRecord) -> dict[str, float]:
    """The baselines of summary.json in nats per token: bits per byte x ln 2 x held-out bytes / tokens."""
    evaluation = run.summary.get("evaluation") or {}
    if not (evaluation.get("tokens", 0) > 0 and evaluation.get("bytes", 0) > 0):  # NaN included
        return {}
    per_bit = math.log(2) * evaluation["bytes"] / evaluation["tokens"]
    baselines = run.summary.get("baselines") or {}
    return {name: entry["bits_per_byte"] * per_bit for name, entry in baselines.items()}
