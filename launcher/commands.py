"""`llmscale launch`: start a run with several ranks."""

import os
from typing import Any

import click

_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_CONFIG = click.argument("config", metavar="CONFIG")
_SBATCH = "launcher.sbatch_options"
_EVAL = "launcher.eval"


@click.group()
def launch() -> None:
    """Start a run with several ranks: on this machine, through Accelerate, or under Slurm."""


class _WithEval(click.Command):
    """What follows `eval` is for `llmscale eval` and not for click, which would take it for options of `launch`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        place = args.index("eval") if "eval" in args else len(args)
        if place < len(args):
            context.meta[_EVAL] = tuple(args[place + 1 :])
        return super().parse_args(context, args[: place + 1])


@launch.command(cls=_WithEval, options_metavar="[OPTIONS]")
@click.option("--nproc", type=click.IntRange(min=1), required=True, help="Number of ranks on this machine.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, min_open=True),
    default=120,
    show_default=True,
    help="Seconds that ranks may take to save and end after SIGTERM or SIGUSR1 before they are killed.",
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often to start all ranks again, from the newest checkpoint, after one has failed.",
)
@click.argument("config", metavar="CONFIG|eval")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.pass_context
def local(
    context: click.Context, nproc: int, grace: float, restarts: int, config: str, overrides: tuple[str, ...]
) -> None:
    """Run `llmscale train CONFIG`, or `llmscale eval ...`, once per rank on this machine.

    \b
    llmscale launch local --nproc 4 config.yaml train.steps=100
    llmscale launch local --nproc 4 eval RUN --tasks arc_easy parallel.tensor=2
    """
    from launcher.local import launch_evaluation, launch_local

    if _EVAL in context.meta:
        context.exit(launch_evaluation(context.meta[_EVAL], nproc, grace))
    context.exit(launch_local(config, overrides, nproc, grace, restarts))


@launch.command()
@click.option("--config-file", required=True, help="Accelerate's own config, such as configs/accelerate/cpu.yaml.")
@_CONFIG
@_OVERRIDES
def accelerate(config_file: str, config: str, overrides: tuple[str, ...]) -> None:
    """Check the config, then become `accelerate launch`."""
    from launcher.accelerate import launch_accelerate

    launch_accelerate(config, overrides, config_file)


class _WithSbatchOptions(click.Command):
    """What follows `--` is sbatch's and not for click, which would take it for more overrides."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        place = args.index("--") if "--" in args else len(args)
        context.meta[_SBATCH] = tuple(args[place + 1 :])
        return super().parse_args(context, args[:place])


@launch.command(cls=_WithSbatchOptions, options_metavar="[OPTIONS]")
@click.option("--nodes", type=click.IntRange(min=1), help="Number of nodes.  [default: 1]")
@click.option(
    "--ntasks-per-node", type=click.IntRange(min=1), help="Ranks on each node.  [default: one per GPU, or one]"
)
@click.option("--time", "time_limit", help="Time limit as sbatch takes it, such as 24:00:00.")
@click.option("--resume", metavar="RUN", help="Continue this run directory by its own config, in place of CONFIG.")
@click.option(
    "--restarts", type=click.IntRange(min=0), default=0, help="How often to start failed ranks again within a job."
)
@click.option(
    "--chain",
    type=click.IntRange(min=1, max=1000),
    default=1,
    help="Jobs in a row by --dependency, where a cluster forbids requeueing.",
)
@click.option(
    "--snapshot/--no-snapshot",
    default=True,
    help="Run from a copy of code and config as they are now, or as they are when the job starts.  [default: a copy]",
)
@click.option("--print", "only_print", is_flag=True, help="Print what would be submitted, as a shell script.")
@click.argument("words", nargs=-1, metavar="CONFIG [KEY=VALUE]... [-- SBATCH-OPTION...]")
@click.pass_context
def slurm(context: click.Context, only_print: bool, resume: str | None, words: tuple[str, ...], **request: Any) -> None:
    """Check the config, submit a job that trains, and print its number; on stderr, what to do with it.

    Any options of sbatch may follow after `--`, such as `-- --partition=gpu --mem=0 --cpus-per-task=8`.
    """
    from launcher.slurm import Request, follow_up, prepare, resumption

    if resume is None and not words:
        raise click.UsageError("Missing argument 'CONFIG', or --resume RUN.")
    config, overrides = (words[0], words[1:]) if resume is None else resumption(resume, words)
    asked = Request(config, overrides, **request, options=context.meta[_SBATCH])
    submission = prepare(asked)
    if only_print:
        click.echo(os.fsencode(submission.script()), nl=False)
        return
    answers = submission.submit()
    for answer in answers:
        click.echo(answer.partition(";")[0])
    if answers[0][:1].isdecimal():
        click.echo(follow_up(asked, submission, answers), err=True)
