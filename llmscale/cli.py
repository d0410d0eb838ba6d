"""The command line. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from data_pipeline.errors import FULL, UserError

USER_MISTAKE = 2
"""Exit code for a mistake that the user can mend: one sentence on stderr, no traceback."""
FAILED = 1
"""Exit code for anything else."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""
_BARRED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
)


class LazyGroup(click.Group):
    """A group that imports the launcher's commands only when they are used, and explains mistakes."""

    def invoke(self, context: click.Context) -> Any:
        # Not around the whole of click, which would turn Ctrl-C into its own message and exit code first.
        with _mistakes_explained():
            return super().invoke(context)

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "launch"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "launch":
            from launcher.commands import launch

            return launch
        return super().get_command(context, name)


# DeepSpeed's launcher, and torch's without --use-env, pass it as the first argument of whatever they start.
_LOCAL_RANK = click.option("--local_rank", "--local-rank", type=click.IntRange(min=0), hidden=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llmscale")
@_LOCAL_RANK
def cli(local_rank: int | None) -> None:
    """Train language models, from raw text to an evaluated model."""
    _adopt_local_rank(local_rank)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--dry-run", is_flag=True, help="Check everything that needs no data, and print the resolved config.")
@click.option(
    "--from-scratch",
    is_flag=True,
    envvar="LLMSCALE_FROM_SCRATCH",
    help="Begin at step 0 where a run has lost its checkpoints; the rest is set aside. LLMSCALE_FROM_SCRATCH=1 does so"
    " under every launcher.",
)
@_LOCAL_RANK
def train(config: Path, overrides: tuple[str, ...], dry_run: bool, from_scratch: bool, local_rank: int | None) -> None:
    """Train as CONFIG says; on a run directory that has a checkpoint, continue from it."""
    _adopt_local_rank(local_rank)
    from llmscale.train.signals import PreemptionFlag

    # Before anything slow: a signal during the imports must not end the run without a word.
    with PreemptionFlag(last=not dry_run) as flag:
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
            resolved = checked_config(config, overrides)
        except UserError as error:
            if not several:
                raise
            from llmscale.engine.distributed import refuse

            refuse(error)
        if dry_run:
            click.echo(dump_config(resolved), nl=False)
            click.echo(f"# identity {identity_digest(resolved)}")
            return
        from llmscale.train.console import lasting_output
        from llmscale.train.start import train as start

        with lasting_output():
            code = start(resolved, flag, from_scratch)
        sys.exit(code)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--gpus", type=click.IntRange(min=1), help="Search the layouts on this many GPUs.")
@click.option("--gpu-memory", help="Memory of a GPU, such as 80GiB.  [default: of --hardware]")
@click.option("--hardware", default="h100", show_default=True, help="Which GPU: a100, h100 or h200.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Figures measured on your machine; JSON or YAML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(config: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Forecast memory and time of a step of CONFIG, and with --gpus find the fastest layout that fits."""
    from llmscale.plan.commands import plan as print_plan

    print_plan(config, overrides, **options)


@cli.command()
def schema() -> None:
    """Print the JSON schema of the config, by which editors complete and check YAML files."""
    import json

    from llmscale.config.schema import config_schema

    click.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))


@cli.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", "files", multiple=True, required=True, help="File or glob to evaluate on; repeatable.")
@click.option("--kind", help="What the files are: text, jsonl, csv, tsv, parquet, arrow or tokens.  [default: by name]")
@click.option("--field", help="Field of the texts, or a template.  [default: the run's own]")
@click.option("--target-field", help="Field of the targets of pairs, or a template.  [default: the run's own]")
@click.option("--encoding", help="Encoding of text, jsonl, csv and tsv, such as gb18030.  [default: the run's own]")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of a forward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(checkpoint: Path, files: tuple[str, ...], batch: int, as_json: bool, **given: str | None) -> None:
    """Loss, perplexity and bits per byte of CHECKPOINT (or a run directory) on given files.

    A text file is one document; of other files, each record is one. A model of objective seq2seq is evaluated on pairs.
    """
    from llmscale.evaluate.commands import evaluate_files
    from llmscale.evaluate.sources import KINDS, Given

    if given["kind"] not in (None, *KINDS):
        raise UserError(f"--kind is {given['kind']!r}, but must be one of {', '.join(KINDS)}")
    evaluate_files(checkpoint, files, batch, as_json, Given(**given))


def _generation(command: Any) -> Any:
    """Options that `generate` and `chat` share."""
    for option in reversed(
        (
            click.option(
                "--max-new-tokens",
                type=int,
                help="Most tokens to add.  [default: the model's, or 128, or what its context has room for]",
            ),
            click.option(
                "--temperature", type=float, help="0: always the most probable token.  [default: the model's, or 0.8]"
            ),
            click.option(
                "--top-k", type=int, help="Only the k most probable tokens.  [default: the model's, or 0: all]"
            ),
            click.option(
                "--top-p", type=float, help="Only the most probable, to this probability.  [default: the model's, or 1]"
            ),
            click.option("--repetition-penalty", type=float, help="CTRL's.  [default: the model's, or 1: none]"),
            click.option("--stop", multiple=True, help="A text that ends the generation; repeatable."),
            click.option("--stop-token", "stop_tokens", type=int, multiple=True, help="A token id that does."),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
        )
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, help="Text to continue, or to read as the source; repeatable.")
@click.option(
    "--prompts", "file", type=click.Path(path_type=Path), help="A file with a prompt a line; empty lines are none."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line: prompt, text, tokens, finish.")
@_generation
@click.option("--beams", type=int, help="Hypotheses of beam search.  [default: the model's, or 1: none]")
@click.option(
    "--length-penalty", type=float, help="Beam search: above 0 favours long texts.  [default: the model's, or 1]"
)
@click.option("--batch", default=8, show_default=True, help="Most prompts in a forward pass.")
@click.option("--raw", is_flag=True, help="Put no special token in front of a prompt or behind it.")
def generate(
    checkpoint: Path, prompts: tuple[str, ...], file: Path | None, as_json: bool, raw: bool, **options: Any
) -> None:
    """Continue prompts with the model of CHECKPOINT (or a run directory). Beam search does not sample."""
    from llmscale.generate.commands import generate_texts

    generate_texts(checkpoint, prompts, file, as_json, options, raw)


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--system", help="A message that stands before the dialogue.")
@click.option(
    "--template",
    help="A chat template: the name of one of CHECKPOINT's, a file, or `none` for the default form; CHECKPOINT's own.",
)
@_generation
def chat(checkpoint: Path, system: str | None, template: str | None, **options: Any) -> None:
    """Talk with the instruction-tuned model of CHECKPOINT; a message a line, /reset begins anew, /quit ends."""
    from llmscale.generate.chat import chat as talk

    talk(checkpoint, system, options, template)


@cli.group()
def data() -> None:
    """Tokenizers and the text that runs are trained on."""


@data.command("tokenizer")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to keep it in; tokenizer/ of the run.")
def data_tokenizer(config: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Train or load the tokenizer of CONFIG, keep it for the run, and show its roles and how it splits text."""
    from llmscale.data_commands.tokenizer import make_tokenizer

    for line in make_tokenizer(config, overrides, output):
        _echo(line)


@data.command("stats")
@click.argument("config", type=click.Path(path_type=Path))
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
    import json

    from llmscale.data_commands.stats import show, text_statistics

    statistics = text_statistics(config, overrides, max_bytes)
    if as_json:
        click.echo(json.dumps(statistics, ensure_ascii=False))
    else:
        show(statistics)


@data.command("prepare")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
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
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=1), help="Show the documents and tokens that this step saw.")
@click.option("--diff", "other", type=click.Path(path_type=Path), help="Find the first step at which a run differs.")
def data_ledger(run: Path, step: int | None, other: Path | None) -> None:
    """What a step of RUN was trained on, read again and checked; or where two runs part (exit code 1 if they do)."""
    from llmscale.data_commands.ledger import ledger_difference, ledger_step

    if step is None and other is None:
        raise UserError("data ledger needs --step N or --diff RUN; give either")
    if step is not None:
        for line in ledger_step(run, step):
            _echo(line)
    if other is not None:
        same, sentence = ledger_difference(run, other)
        _echo(sentence)
        sys.exit(0 if same else FAILED)


@cli.command("import")
@click.argument("folder", metavar="HF_DIR", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer's files, or `bytes`; HF_DIR."
)
@click.option("--allow-pickle", is_flag=True, help="Read pytorch_model.bin where there is no safetensors file.")
@click.option("--new-head", is_flag=True, help="Draw the head's tensors that HF_DIR lacks, as a fresh model's.")
def import_model(folder: Path, out: Path, tokenizer: Path | None, allow_pickle: bool, new_head: bool) -> None:
    """Make the checkpoint OUT (weights, tokenizer, config) of a Hugging Face directory."""
    from llmscale.exchange.importing import import_directory

    lines = import_directory(folder, out, allow_pickle=allow_pickle, tokenizer=tokenizer, new_head=new_head)
    for line in lines:
        _echo(line)


@cli.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", metavar="HF_DIR", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--shard-size", default="5GB", show_default=True, help="Most bytes of a file of tensors.")
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer out.")
def export_model(checkpoint: Path, folder: Path, dtype: str, shard_size: str, no_tokenizer: bool) -> None:
    """Make the Hugging Face directory HF_DIR of CHECKPOINT (or a run directory)."""
    from llmscale.exchange.exporting import export_checkpoint

    lines = export_checkpoint(checkpoint, folder, dtype=dtype, shard_size=shard_size, with_tokenizer=not no_tokenizer)
    for line in lines:
        _echo(line)


@cli.group()
def checkpoint() -> None:
    """Look at checkpoints."""


@checkpoint.command("show")
@click.argument("path", type=click.Path(path_type=Path))
def checkpoint_show(path: Path) -> None:
    """What a checkpoint holds."""
    from llmscale.checkpoint.commands import show

    _echo(show(path))


@checkpoint.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--reload", "layout", metavar="LAYOUT", help="Load it in this layout too, such as tp=2,dp=1.")
def checkpoint_verify(path: Path, layout: str | None) -> None:
    """Read every file of a checkpoint and compare it with its recorded SHA-256.

    With --reload, load it on ranks of this machine's CPU and compare all that they then hold with it.
    """
    from llmscale.checkpoint.commands import verify

    _echo(verify(path))
    if layout is not None:
        from llmscale.parity.layouts import parse_layout
        from llmscale.parity.reload import reload

        click.echo(reload(path, parse_layout(layout)))


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
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

    A layout names sizes: dp, tp, sp, pp, ep, and settings: zero, positions, recompute, micro, workers, or any dotted
    key of `engine`. Exit code 1 when one is beyond the tolerance of its arithmetic.
    """
    from llmscale.parity.command import parity as run

    # Overrides have a section before their key; what else there is belongs to --layouts.
    overrides = [text for text in others if "." in text.partition("=")[0]]
    more = [text for text in others if "." not in text.partition("=")[0]]
    sys.exit(0 if run(config, overrides, [*layouts, *more], steps, optimizer, as_json) else FAILED)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write to; report/ of the first run.")
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw loss, learning rate and throughput of RUNS as PNG files and one HTML page."""
    from llmscale.report import write_report

    paths = write_report(list(runs), output)
    if paths.skipped:
        _complain(f"warning: {paths.skipped:,} damaged record(s) of the runs are left out of the report")
    _echo(str(paths.page))


def _adopt_local_rank(local_rank: int | None) -> None:
    if local_rank is not None:
        from llmscale.distributed.ranks import adopt_local_rank

        adopt_local_rank(local_rank)


@contextlib.contextmanager
def _mistakes_explained() -> Iterator[None]:
    """One sentence on stderr instead of a traceback, and the exit code, where the cause is known."""
    try:
        yield
    except UserError as error:
        if _rank() == 0 or not error.everywhere:
            _complain(str(error))
        sys.exit(USER_MISTAKE)
    except OSError as error:
        reason = error.strerror
        if error.errno in FULL:
            _complain(f"cannot write {error.filename or 'the run'}: {reason}; free some space, then start again")
            sys.exit(FAILED)
        if error.errno in _BARRED and error.filename is not None:
            _complain(f"cannot use {error.filename}: {reason}; make it accessible, or name another place")
            sys.exit(USER_MISTAKE)
        raise
    except KeyboardInterrupt:
        if _rank() == 0:
            _complain("interrupted")
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if type(error).__name__ not in ("CheckpointError", "LostRankError", "DivergedError"):
            raise
        if not getattr(error, "told", False) and (_rank() == 0 or type(error).__name__ != "DivergedError"):
            # Every rank raises a DivergedError alike.
            _complain(str(error))
        sys.exit(FAILED)


def _echo(text: str) -> None:
    from data_pipeline.terminal import for_stream

    click.echo(for_stream(text, sys.stdout))


def _complain(message: str) -> None:
    from data_pipeline.terminal import visible

    rank = _rank()
    where = f"rank {rank}: " if rank else ""
    with contextlib.suppress(OSError):  # a terminal that is closed changes no exit code
        print(visible(f"llmscale: {where}{message}"), file=sys.stderr, flush=True)


def _rank() -> int:
    from llmscale.distributed.ranks import shown_rank

    return shown_rank()


def main() -> None:
    """Entry point of the `llmscale` command."""
    try:
        cli.main(prog_name="llmscale")
    finally:
        # The exit code stands: Ctrl-C while the interpreter ends changes nothing any more.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
