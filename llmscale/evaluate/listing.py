"""What `llmscale eval` does without a model: lists of tasks, and metrics of artefacts. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.results import as_json, figures_of, show
from llmscale.evaluate.tasks import available_tasks


def list_tasks(json_wanted: bool) -> None:
    """Print the tasks and suites there are."""
    listed = available_tasks()
    if json_wanted:
        click.echo(json.dumps([each._asdict() for each in listed], ensure_ascii=False))
        return
    for each in listed:
        click.echo(f"{each.name:<22} {each.kind:<13} {each.language:<6} {each.description}")


def recompute(folders: Sequence[Path], metrics: Sequence[str], json_wanted: bool) -> None:
    """Print metrics of artefacts, of which nothing is evaluated again.

    Raises:
        UserError: a damaged artefact, or a metric that does not fit.
    """
    results = [figures_of(load_artefact(folder), metrics) for folder in folders]
    if json_wanted:
        click.echo(as_json(results))
    else:
        show(results)
