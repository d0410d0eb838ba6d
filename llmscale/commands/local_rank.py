"""The option by which some launchers tell a process its place."""

from __future__ import annotations

import click

# DeepSpeed's launcher, and torch's without --use-env, pass it as the first argument of whatever they start.
LOCAL_RANK = click.option("--local_rank", "--local-rank", type=click.IntRange(min=0), hidden=True)


def adopt(local_rank: int | None) -> None:
    """Take the place that `LOCAL_RANK` gave, if it did."""
    if local_rank is not None:
        from llmscale.distributed.ranks import adopt_local_rank

        adopt_local_rank(local_rank)
