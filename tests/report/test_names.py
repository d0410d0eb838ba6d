"""Several runs in one picture: what the legend calls them, and what it takes of the picture."""

import json
import warnings

import pytest
from matplotlib.colors import to_hex
from synthetic_runs import write_metrics, write_run

from llmscale.report import write_report
from llmscale.report.figures import MUTED, loss_figure, short_names, style
from llmscale.report.record import read_runs

LONG = "pretraining-on-the-whole-corpus-with-another-learning-rate-and-seed-number-{}-of-a-sweep"


def legend_of(runs):
    with style():
        figure = loss_figure(read_runs(runs))
        figure.draw_without_rendering()
    [axes] = figure.axes
    legend = axes.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    return figure, axes, legend, dict(zip(texts, legend.legend_handles, strict=True))


def test_long_names_leave_the_axes_their_room(tmp_path):
    runs = [write_run(tmp_path / LONG.format(number), seed=number) for number in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(runs, tmp_path / "report").page.read_text(encoding="utf-8")
        figure, axes, legend, entries = legend_of(runs)
    assert all(page.partition("<h2>Summary</h2>")[2].count(run.name) > 0 for run in runs)
    assert list(entries) == [
        f"pretraining-o…-{number}-of-a-sweep{what}" for number in range(2) for what in ("", ", held out")
    ]
    assert axes.get_window_extent().width > 0.8 * figure.bbox.width
    inside = legend.get_window_extent()
    assert figure.bbox.x0 <= inside.x0
    assert inside.x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    "names",
    [
        ["wide", "deep"],
        [LONG.format(number) for number in range(12)],
        [f"the-same-beginning-{number}-and-the-same-end-of-all" for number in range(12)],
        ["the-same-begi…-same-end-of", "the-same-beginning-and-the-same-end-of", "the-same-beginning-or-same-end-of"],
    ],
)
def test_other_names_stay_others(names):
    short = short_names(names)
    assert len(set(short)) == len(names)
    assert all(len(text) <= 31 for text in short)
    assert [text for name, text in zip(names, short, strict=True) if len(name) <= 28] == [
        name for name in names if len(name) <= 28
    ]


def test_crosses_of_several_runs_have_one_entry_of_no_runs_colour(tmp_path):
    runs = [write_run(tmp_path / name, seed=seed, finished=False) for seed, name in enumerate(("wide", "deep"))]
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        write_metrics(run, [{**row, "loss": None} if row["step"] > 300 and "loss" in row else row for row in rows])
    _, axes, _, entries = legend_of(runs)
    assert list(entries)[-1] == "not finite"
    assert to_hex(entries["not finite"].get_color()) == MUTED
    crosses = {to_hex(line.get_color()) for line in axes.get_lines() if line.get_label() == "not finite"}
    assert len(crosses) == 2
    assert MUTED not in crosses
