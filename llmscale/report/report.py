"""`llmscale report`: pictures as PNG files, and one page that holds everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.base.durable import replace_file
from data_pipeline.base.errors import UserError
from llmscale.report.figures import FIGURES, draw_all, loss_figure, require_matplotlib, save_png, style
from llmscale.report.page import render_page
from llmscale.report.record import read_runs
from llmscale.report.tasks import read_tasks


@dataclass(frozen=True)
class ReportPaths:
    """The files that a report consists of."""

    page: Path
    loss: Path
    learning_rate: Path
    throughput: Path
    gradient_norm: Path
    terms: dict[str, Path] = field(default_factory=dict)
    """Pictures of the loss's other terms by their names, where a run has any."""
    skipped: int = 0
    """Damaged records of the runs, which are left out."""


def write_report(runs: list[Path], output: Path | None = None) -> ReportPaths:
    """Draw `runs`, overlaid when there are several, into the folder `output` (default: report/ in the first run).

    A run may still be in progress. Files of an earlier report are replaced.

    Raises:
        UserError: no run given, a directory that is no started run, or matplotlib is missing.
    """
    require_matplotlib()
    if not runs:
        raise UserError("a report needs at least one run directory; give one, such as: llmscale report runs/quickstart")
    records = read_runs(runs)
    folder = output or runs[0] / "report"
    with style():
        figures = draw_all(records)
        pictures = {name: folder / f"{name}.png" for name in figures}
        for name, figure in figures.items():
            save_png(figure, pictures[name])
        tasks = read_tasks(runs, [record.name for record in records])
        page = render_page(records, figures, tasks)
    replace_file(folder / "report.html", page.encode(errors="backslashreplace"))
    fixed = {name: path for name, path in pictures.items() if name in FIGURES}
    terms = {name: path for name, path in pictures.items() if name not in FIGURES}
    return ReportPaths(page=folder / "report.html", **fixed, terms=terms, skipped=sum(run.skipped for run in records))


def loss_curve(run: Path, path: Path) -> None:
    """Draw only the loss of one run, as the PNG file `path`.

    Raises:
        UserError: as `write_report`.
    """
    require_matplotlib()
    records = read_runs([run])
    with style():
        save_png(loss_figure(records), path)
