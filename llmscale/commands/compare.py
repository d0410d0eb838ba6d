"""`llmscale compare`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="A B [C ...]")
@click.option("--task", "tasks", multiple=True, help="Only this task; repeatable.  [default: all that both have]")
@click.option("--metric", "metrics", multiple=True, help="Compare by this; repeatable.  [default: the task's first]")
@click.option(
    "--delta",
    "deltas",
    multiple=True,
    metavar="[METRIC=]NUMBER",
    help="Differences below it do not matter: models may be equal within it.  [repeatable, by metric]",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of intervals and verdicts.")
@click.option(
    "--checkpoints",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Take the noise of training from this many last checkpoints of each run.",
)
@click.option("--common", is_flag=True, help="Where items differ, compare on those that all have.")
@click.option("--items", type=click.IntRange(min=0), default=0, help="List so many items on which models differ.")
@click.option("--plot", type=PATH, help="Draw the differences to a .png or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    metrics: tuple[str, ...],
    deltas: tuple[str, ...],
    level: float,
    checkpoints: int,
    common: bool,
    items: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare models on the items that they were evaluated on, each with the first.

    A model is an artefact, a run or a checkpoint with evaluations/, or a file samples_*.jsonl of lm-eval; several with
    commas between are seeds of one model.
    """
    from llmscale.evaluate.compare.command import compare_models
    from llmscale.report.forest import ForestRow, check_picture, draw_forest

    if plot is not None:
        check_picture(plot)
    comparisons = compare_models(models, tasks, metrics, level, deltas, checkpoints, common, items, as_json)
    if plot is not None:
        rows = [
            ForestRow(
                row.task,
                row.metric,
                row.second if len(models) > 2 else "",
                row.difference.value,
                row.difference.low,
                row.difference.high,
                row.verdict.word,
                row.verdict.sentence,
                row.higher_is_better,
                row.verdict.delta,
            )
            for row in comparisons
        ]
        draw_forest(rows, plot, f"{models[1] if len(models) == 2 else 'models'} beside {models[0]}", level)
