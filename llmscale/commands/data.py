"""`llmscale data`: tokenizers and the text that runs are trained on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from data_pipeline.base.errors import UserError
from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo
from llmscale.distributed.exit_codes import FAILED


@click.group()
def data() -> None:
    """Tokenizers and the text that runs are trained on."""


@data.command("tokenizer")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("-o", "--output", type=PATH, help="Folder to keep it in; tokenizer/ of the run.")
def data_tokenizer(config: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Train or load the tokenizer of CONFIG, keep it for the run, and show its roles and how it splits text."""
    from llmscale.data_commands.tokenizer import make_tokenizer

    for line in make_tokenizer(config, overrides, output):
        echo(line)


@data.command("stats")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option(
    "--bytes",
    "max_bytes",
    type=click.IntRange(min=0),
    default=10_000_000,
    show_default=True,
    help="Read this much of each source, evenly spread; 0: everything.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def data_stats(config: Path, overrides: tuple[str, ...], max_bytes: int, as_json: bool) -> None:
    """Tokens per byte, unknown text and document lengths of each source of CONFIG, under its tokenizer."""
    from llmscale.data_commands.stats import show, text_statistics

    statistics = text_statistics(config, overrides, max_bytes)
    if as_json:
        click.echo(json.dumps(statistics, ensure_ascii=False))
    else:
        show(statistics)


@data.command("show")
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="How many to show.")
@click.option(
    "--split",
    type=click.Choice(["train", "evaluation"]),
    default="train",
    show_default=True,
    help="Of which documents.",
)
def data_show(config: Path, overrides: tuple[str, ...], samples: int, split: str) -> None:
    """Samples of CONFIG as the model will see them: special tokens, padding, and what is learned in colour, or in
    [[ ]] where there is no terminal or NO_COLOR is set. No weights and no GPU are needed."""
    from llmscale.data_commands.show import show_samples

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in show_samples(config, overrides, count=samples, evaluation=split == "evaluation", colour=colour):
        click.echo(line, color=colour)


@data.command("prepare")
@click.argument("config", type=PATH)
@click.argument("out", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--processes", type=click.IntRange(min=1), help="Processes on this machine; all its cores.")
@click.option("--rank", type=click.IntRange(min=0), default=0, help="Number of this task of a Slurm array, from 0.")
@click.option("--world", type=click.IntRange(min=1), default=1, help="Tasks that share the work and OUT.")
@click.option("--merge", is_flag=True, help="Only join the parts that all tasks have finished.")
def data_prepare(
    config: Path, out: Path, overrides: tuple[str, ...], processes: int | None, rank: int, world: int, merge: bool
) -> None:
    """Tokenize all documents of CONFIG once, into .bin/.idx files in OUT that training and Megatron-LM read.

    Killed, it goes on where it was when started again. The result is the same on any number of processes and tasks.
    """
    from llmscale.data_commands.prepare import prepare_data

    click.echo(prepare_data(config, out, overrides, processes=processes, rank=rank, world=world, merge_only=merge))


@data.command("ledger")
@click.argument("run", type=PATH)
@click.option("--step", type=click.IntRange(min=1), help="Show the documents and tokens that this step saw.")
@click.option("--diff", "other", type=PATH, help="Find the first step at which a run differs.")
def data_ledger(run: Path, step: int | None, other: Path | None) -> None:
    """What a step of RUN was trained on, read again and checked; or where two runs part (exit code 1 if they do)."""
    from llmscale.data_commands.ledger import ledger_difference, ledger_step

    if step is None and other is None:
        raise UserError("data ledger needs --step N or --diff RUN; give either")
    if step is not None:
        for line in ledger_step(run, step):
            echo(line)
    if other is not None:
        same, sentence = ledger_difference(run, other)
        echo(sentence)
        sys.exit(0 if same else FAILED)
