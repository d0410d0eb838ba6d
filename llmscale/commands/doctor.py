"""`llmscale doctor`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo
from llmscale.distributed.exit_codes import FAILED
from llmscale.distributed.ranks import shown_rank


@click.command()
@click.option("--folder", type=PATH, default=Path("runs"), show_default=True, help="Where runs lie.")
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks to measure between.  [default: one per GPU, or two]")
@click.option("--slurm", is_flag=True, help="Look at Slurm too, and submit a job of a minute that gets a signal.")
@click.option(
    "--wait", type=click.FloatRange(min=1), default=120, show_default=True, help="Seconds for that job in the queue."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def doctor(folder: Path, nproc: int | None, slurm: bool, wait: float, as_json: bool) -> None:
    """Examine this machine, the links between ranks, and Slurm: a line each, pass, warn or fail, with the fix.

    Started by srun or torchrun, it measures between the ranks of that launch. The exit code is 1 where a line says
    fail.
    """
    import json

    from launcher.environment import adopt_slurm_environment
    from llmscale.doctor.doctor import examine

    adopt_slurm_environment()
    failed = False
    for finding in examine(folder, nproc, slurm, wait):
        failed |= finding.status == "fail"
        if shown_rank() == 0:
            echo(json.dumps(finding.as_json()) if as_json else finding.as_line())
            sys.stdout.flush()
    sys.exit(FAILED if failed else 0)
