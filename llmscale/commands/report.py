"""`llmscale report`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import complain, echo


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--output", type=PATH, help="Folder to write to; report/ of the first run.")
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw loss, learning rate and throughput of RUNS as PNG files and one HTML page."""
    from llmscale.report import write_report

    paths = write_report(list(runs), output)
    if paths.skipped:
        complain(f"warning: {paths.skipped:,} damaged record(s) of the runs are left out of the report")
    echo(str(paths.page))
