"""What commands print, on stdout and on stderr."""

from __future__ import annotations

import contextlib
import sys

import click

from data_pipeline.base.terminal import for_stream, visible
from llmscale.distributed.ranks import shown_rank


def echo(text: str) -> None:
    """A line of a result. Control characters are shown where stdout is a terminal."""
    click.echo(for_stream(text, sys.stdout))


def complain(message: str) -> None:
    """One line on stderr, with the rank that says it where that is not rank 0."""
    rank = shown_rank()
    where = f"rank {rank}: " if rank else ""
    with contextlib.suppress(OSError):  # a terminal that is closed changes no exit code
        print(visible(f"llmscale: {where}{message}"), file=sys.stderr, flush=True)
