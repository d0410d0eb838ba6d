"""What fine-tuning has brought: figures of tasks before the first step beside those of the finished model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell, visible
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.compare import Comparison, compare
from llmscale.evaluate.compare.models import Model
from llmscale.evaluate.compare.scored import ScoredArtefact
from llmscale.evaluate.compare.show import as_json, show
from llmscale.train.setup import Setup

LEVEL = 0.95
"""Of intervals and verdicts."""


def compared(setup: Setup) -> list[Comparison]:
    """Paired comparisons on each of `evaluation.tasks`, of which the artefacts are in the run; empty without any."""
    names = [task.name for task in setup.tasks] if setup.config.finetune is not None else []
    before, after = (_model(setup, step, names) for step in (0, setup.state.step))
    if not (before.evaluations and after.evaluations):
        return []
    try:
        return compare([before, after], level=LEVEL)
    except UserError as error:
        tell(f"warning: the base model is not compared: {error}")
        return []


def _model(setup: Setup, step: int, names: list[str]) -> Model:
    name = f"{setup.config.train.init_from} (before)" if step == 0 else f"{setup.run.path}, step {step}"
    found = {task: folder for task in names if (folder := _artefact(setup.run.path / "evaluations", step, task))}
    return Model(name, {task: [ScoredArtefact(load_artefact(path))] for task, path in found.items()}, "checkpoints")


def _artefact(folder: Path, step: int, task: str) -> Path | None:
    """The newest artefact of all items of a task at a step."""
    whole = [
        path
        for path in folder.glob(f"step-{step:08d}-*")
        if (meta := load_artefact(path).meta).task == task and meta.limited is None
    ]
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def show_gain(comparisons: list[Comparison], forgotten: dict[str, dict[str, float | None]]) -> None:
    """Print both tables, where there is something in them."""
    if comparisons:
        show(comparisons, LEVEL)
    if not forgotten:
        return
    table = Table(box=box.SIMPLE_HEAD, title="What was forgotten: bits per byte", title_justify="left")
    table.add_column("held-out text", overflow="fold")
    for name in ("before", "after", "after - before"):
        table.add_column(name, justify="right", no_wrap=True)
    for source, row in forgotten.items():
        before, after = row["before"], row["after"]
        known = before is not None and after is not None
        more = f"{after - before:+.4f}" if known else "?"  # type: ignore[operator]
        table.add_row(
            Text(visible(source)), *(f"{value:.4f}" if value is not None else "?" for value in (before, after)), more
        )
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def gain_as_json(comparisons: list[Comparison], forgotten: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """For summary.json: `tasks` and `forgetting`."""
    found: dict[str, Any] = {"forgetting": forgotten} if forgotten else {}
    return found | ({"tasks": as_json(comparisons, LEVEL)} if comparisons else {})
