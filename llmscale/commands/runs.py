"""`llmscale runs`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo


@click.command()
@click.argument("folder", metavar="[DIR]", type=PATH, default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in DIR (`runs` when not given): state, step, loss, speed, job, restarts and goodput.

    MFU is the share of the devices' peak that the model's own operations take; goodput the share of the wall time of
    all attempts, waiting included, that went into steps that count.
    """
    import json

    from llmscale.report.listing import as_table, list_runs

    found = list_runs(folder)
    echo("\n".join(json.dumps(run.as_json()) for run in found) if as_json else as_table(found))
