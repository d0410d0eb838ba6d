"""`llmscale parity`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.distributed.exit_codes import FAILED


@click.command()
@click.argument("config", type=PATH)
@click.argument("others", nargs=-1, metavar="[dotted.key=value ...] [LAYOUT ...]")
@click.option("--layouts", multiple=True, metavar="LAYOUT ...", help="Such as tp=2 zero=3,dp=2.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps of each run.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="Only this one; both.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def parity(
    config: Path,
    others: tuple[str, ...],
    layouts: tuple[str, ...],
    steps: int,
    optimizer: str | None,
    as_json: bool,
) -> None:
    """Does CONFIG compute the same in LAYOUTS as in one process? Trains some steps on CPU ranks of this machine.

    A layout names sizes: dp, tp, cp, pp, ep, and settings: zero, sequence_parallel, activation_checkpointing, micro,
    workers, or any dotted key of `engine`. Exit code 1 when one is beyond the tolerance of its arithmetic.
    """
    from llmscale.parity.command import parity as run

    # Overrides have a section before their key; what else there is belongs to --layouts.
    overrides = [text for text in others if "." in text.partition("=")[0]]
    more = [text for text in others if "." not in text.partition("=")[0]]
    sys.exit(0 if run(config, overrides, [*layouts, *more], steps, optimizer, as_json) else FAILED)
