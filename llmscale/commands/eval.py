"""`llmscale eval`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from data_pipeline.base.errors import UserError
from llmscale.commands.device_options import chosen, device_options, require_device
from llmscale.commands.local_rank import LOCAL_RANK, adopt
from llmscale.commands.paths import PATH

_ALWAYS = ("listed", "as_json", "local_rank", "device", "dtype")
_OF_TASKS = (
    *("checkpoint", "overrides", "tasks", "files", "data_root", "few_shot", "limit", "seed", "scorer", "overflow"),
    *("metrics", "contamination", "before", "output"),
)
_OF_FILES = ("checkpoint", "overrides", "tasks", "files", "limit", "kind", "field", "target_field", "encoding", "batch")


@click.command("eval")
@click.argument("checkpoint", type=PATH, required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--tasks", multiple=True, help="Tasks or suites, by name or file, separated by commas.")
@click.option("--list", "listed", is_flag=True, help="List the tasks.")
@click.option(
    "--data",
    "files",
    multiple=True,
    help="Without --tasks: file or glob to evaluate on. With --tasks: TASK=PATH, where its data are. Repeatable.",
)
@click.option("--data-root", help="Folder with the data of tasks.  [default: LLMSCALE_DATA_ROOT]")
@click.option("--few-shot", type=click.IntRange(min=0), help="Examples before each item.  [default: the task's own]")
@click.option("--limit", type=click.IntRange(min=1), help="Most items of a task, or samples of files.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of examples and of sampling.")
@click.option("--scorer", help="How texts are scored.  [default: as suits the model]")
@click.option(
    "--overflow",
    type=click.Choice(["refuse", "truncate-left", "window"]),
    help="What becomes of items longer than the context, in tasks that would refuse them.",
)
@click.option("--metrics", multiple=True, help="Metrics, separated by commas.  [default: the tasks' own]")
@click.option("--contamination", type=PATH, metavar="RUN", help="Look for the items in what RUN has seen.")
@click.option("--before", metavar="MODEL", help="With --contamination: an earlier checkpoint, evaluated on the same.")
@click.option("--output", type=PATH, help="Folder of artefacts.  [default: RUN/evaluations]")
@device_options
@click.option("--kind", help="What the files are: text, jsonl, csv, tsv, parquet, arrow or tokens.  [default: by name]")
@click.option("--field", help="Field of the texts, or a template.  [default: the run's own]")
@click.option("--target-field", help="Field of the targets of pairs, or a template.  [default: the run's own]")
@click.option("--encoding", help="Encoding of text, jsonl, csv and tsv, such as gb18030.  [default: the run's own]")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of a forward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@LOCAL_RANK
def evaluate(
    checkpoint: Path | None,
    overrides: tuple[str, ...],
    tasks: tuple[str, ...],
    listed: bool,
    files: tuple[str, ...],
    as_json: bool,
    local_rank: int | None,
    **options: Any,
) -> None:
    """Evaluate CHECKPOINT (or a run directory) on tasks, or on files.

    \b
    llmscale eval RUN --tasks arc_easy,lambada    scores of tasks, kept in RUN/evaluations
    llmscale eval RUN --data FILE                 loss, perplexity and bits per byte of a file
    llmscale eval RUN/evaluations/... --metrics brier_score    other metrics of what was evaluated
    llmscale eval RUN --tasks arc_easy --contamination RUN     which items RUN was trained on
    llmscale eval RUN/evaluations                 all that was evaluated

    Of files, a text file is one document; of others, each record is one. Under a launcher the model is cut as the
    settings say, such as parallel.tensor=2.
    """
    adopt(local_rank)
    if listed:
        from llmscale.evaluate.listing import list_tasks

        _refuse_others({"checkpoint"}, "the list of tasks; leave it out, or leave out --list")
        list_tasks(as_json)
        return
    if checkpoint is None:
        raise UserError("eval needs a checkpoint, a run directory or an artefact; name one")
    metrics = _split(options["metrics"])
    artefacts = [path.parent for path in sorted(checkpoint.glob("*/items.jsonl")) if path.is_file()]
    if any((checkpoint / name).is_file() for name in ("items.jsonl", "meta.json")):
        artefacts = [checkpoint]
    if artefacts:
        from llmscale.evaluate.listing import recompute

        _refuse_others(
            {"checkpoint", "metrics"}, f"{checkpoint}, which was evaluated already; name a checkpoint or run"
        )
        recompute(artefacts, metrics, as_json)
        return
    names = _split(tasks)
    contamination, before = options["contamination"], options["before"]
    if before is not None and contamination is None:
        raise UserError(f"--before is {before}, which goes with --contamination RUN; give both, or leave it out")
    if not names:
        if contamination is not None:
            raise UserError(f"--contamination {contamination} is about items of tasks; give --tasks NAME (see --list)")
        _on_files(checkpoint, overrides, files, as_json, options)
        return
    _refuse_others(_OF_TASKS, "tasks; leave it out, or evaluate on files, by --data FILE without --tasks")
    from launcher.environment import adopt_slurm_environment
    from llmscale.evaluate.evaluation import Choices
    from llmscale.evaluate.task_commands import Contamination, Where, evaluate_on_tasks

    adopt_slurm_environment()
    require_device(options["device"])
    chosen = {name: options[name] for name in ("limit", "few_shot", "seed", "scorer", "overflow", "output")}
    evaluate_on_tasks(
        str(checkpoint),
        names,
        files,
        options["data_root"],
        Choices(**chosen),
        Where(options["device"], options["dtype"], overrides),
        metrics,
        as_json,
        None if contamination is None else Contamination(contamination, before),
    )


def _on_files(
    checkpoint: Path, overrides: tuple[str, ...], files: tuple[str, ...], as_json: bool, options: dict[str, Any]
) -> None:
    if not files:
        raise UserError("eval needs something to evaluate on; give --tasks NAME (see --list) or --data FILE")
    _refuse_others(_OF_FILES, "an evaluation on files; leave it out, or give --tasks NAME")
    device, dtype = chosen(options["device"], options["dtype"])
    if overrides:
        raise UserError(f"{overrides[0]!r} is a setting for --tasks; leave it out, or give --tasks")
    from llmscale.evaluate.commands import evaluate_files
    from llmscale.evaluate.sources import KINDS, Given

    given = Given(**{name: options[name] for name in Given._fields})
    if given.kind not in (None, *KINDS):
        raise UserError(f"--kind is {given.kind!r}, but must be one of {', '.join(KINDS)}")
    evaluate_files(checkpoint, files, options["batch"], as_json, given, device, dtype, options["limit"])


def _refuse_others(taken: Collection[str], use: str) -> None:
    """Refuse what is given on the command line and changes nothing: all but the options `taken` and `--json`.

    Raises:
        UserError: names the first, and what it does not change: the `use`, with what to do.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE and context.params[name] != ()
        if given and name not in (*taken, *_ALWAYS):
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else context.params[name][0]
            raise UserError(f"{shown} changes nothing of {use}")


def _split(values: tuple[str, ...]) -> list[str]:
    return [name for value in values for name in value.split(",") if name]
