"""`llmscale launch`: start a run with several ranks."""

import click

_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_CONFIG = click.argument("config", metavar="CONFIG")


@click.group()
def launch() -> None:
    """Start a run with several ranks: on this machine, through Accelerate, or under Slurm."""


@launch.command()
@click.option("--nproc", type=click.IntRange(min=1), required=True, help="Number of ranks on this machine.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, min_open=True),
    default=120,
    show_default=True,
    help="Seconds that ranks may take to save and end after SIGTERM or SIGUSR1 before they are killed.",
)
@_CONFIG
@_OVERRIDES
@click.pass_context
def local(context: click.Context, nproc: int, grace: float, config: str, overrides: tuple[str, ...]) -> None:
    """Run `llmscale train` once per rank on this machine."""
    from launcher.local import launch_local

    context.exit(launch_local(config, overrides, nproc, grace))


@launch.command()
@click.option("--config-file", required=True, help="Accelerate's own config, such as configs/accelerate/cpu.yaml.")
@_CONFIG
@_OVERRIDES
def accelerate(config_file: str, config: str, overrides: tuple[str, ...]) -> None:
    """Check the config, then become `accelerate launch`."""
    from launcher.accelerate import launch_accelerate

    launch_accelerate(config, overrides, config_file)


@launch.command()
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="Number of nodes.")
@click.option("--ntasks-per-node", type=click.IntRange(min=1), required=True, help="Ranks on each node.")
@click.option("--time", "time_limit", help="Time limit as sbatch takes it, such as 24:00:00.")
@_CONFIG
@_OVERRIDES
def slurm(nodes: int, ntasks_per_node: int, time_limit: str | None, config: str, overrides: tuple[str, ...]) -> None:
    """Check the config, submit slurm/train.sbatch and print the job's number."""
    from launcher.slurm import submit

    click.echo(submit(config, overrides, nodes, ntasks_per_node, time_limit))
