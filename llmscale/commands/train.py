"""`llmscale train`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import warn
from llmscale.commands.local_rank import LOCAL_RANK, adopt
from llmscale.commands.paths import PATH


@click.command()
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--dry-run", is_flag=True, help="Check everything that needs no data, and print the resolved config.")
@click.option(
    "--from-scratch",
    is_flag=True,
    envvar="LLMSCALE_FROM_SCRATCH",
    help="Begin at step 0 where a run has lost its checkpoints; the rest is set aside. LLMSCALE_FROM_SCRATCH=1 does so"
    " under every launcher.",
)
@LOCAL_RANK
def train(config: Path, overrides: tuple[str, ...], dry_run: bool, from_scratch: bool, local_rank: int | None) -> None:
    """Train as CONFIG says; on a run directory that has a checkpoint, continue from it."""
    adopt(local_rank)
    from llmscale.train.signals import PreemptionFlag

    # Before anything slow: a signal during the imports must not end the run without a word.
    with PreemptionFlag(last=not dry_run) as flag:
        import psutil

        from launcher.environment import adopt_slurm_environment
        from llmscale.config import dump_config, identity_digest
        from llmscale.distributed.ranks import read_place
        from llmscale.train.check import checked_config

        adopt_slurm_environment()
        # WORLD_SIZE alone says for how many ranks a dry run checks.
        several = not dry_run and read_place().size > 1
        if several:
            flag.expect_no_step(others=True)
        try:
            resolved = checked_config(config, overrides, warn if not several or read_place().rank == 0 else None)
        except UserError as error:
            if not several:
                raise
            from llmscale.distributed.process_group import refuse

            refuse(error)
        if dry_run:
            click.echo(dump_config(resolved), nl=False)
            click.echo(f"# identity {identity_digest(resolved)}")
            return
        from llmscale.train.console import lasting_output
        from llmscale.train.start import train as start
        from llmscale.train.time_account import TimeAccount

        with lasting_output():
            code = start(resolved, flag, from_scratch, TimeAccount(psutil.Process().create_time()))
        sys.exit(code)
