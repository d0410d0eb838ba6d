"""`llmscale checkpoint`: looking at checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo


@click.group()
def checkpoint() -> None:
    """Look at checkpoints."""


@checkpoint.command("show")
@click.argument("path", type=PATH)
def checkpoint_show(path: Path) -> None:
    """What a checkpoint holds."""
    from llmscale.checkpoint.commands import show

    echo(show(path))


@checkpoint.command("verify")
@click.argument("path", type=PATH)
@click.option("--reload", "layout", metavar="LAYOUT", help="Load it in this layout too, such as tp=2,dp=1.")
def checkpoint_verify(path: Path, layout: str | None) -> None:
    """Read every file of a checkpoint and compare it with its recorded SHA-256.

    With --reload, load it on ranks of this machine's CPU and compare all that they then hold with it.
    """
    from llmscale.checkpoint.commands import verify

    echo(verify(path))
    if layout is not None:
        from llmscale.layout.text import parse_layout
        from llmscale.parity.reload import reload

        click.echo(reload(path, parse_layout(layout)))


@checkpoint.command("merge")
@click.argument("path", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--largest-difference",
    type=click.FloatRange(min=0),
    help="Largest change of the outputs by merging, as a share; 1e-4.",
)
def checkpoint_merge(path: Path, out: Path, largest_difference: float | None) -> None:
    """Make the checkpoint OUT of PATH (or a run directory) with its low-rank factors in its weights."""
    from llmscale.checkpoint.merging import merge

    for line in merge(path, out, largest_difference):
        echo(line)
