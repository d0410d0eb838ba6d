"""`llmscale eval --tasks`, `--list`, and of an artefact."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import torch

from data_pipeline.base.errors import UserError, about
from data_pipeline.base.progress import Progress
from data_pipeline.base.terminal import tell
from llmscale.config.system import HELD_OUT, GenerateConfig
from llmscale.distributed.agreement import on_rank_zero, together
from llmscale.distributed.process_group import join, leave, named_losses, read_world
from llmscale.distributed.ranks import read_place
from llmscale.engine.engine import resolve_dtype
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.compare.models import Model
from llmscale.evaluate.contamination.effect import load_before
from llmscale.evaluate.contamination.run import TrainedOn, asked_of
from llmscale.evaluate.contamination.seen_items import write_seen
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.held_out import held_out_task
from llmscale.evaluate.metrics import check_metric
from llmscale.evaluate.placed import Placed, Source, place_on_ranks, place_whole
from llmscale.evaluate.results import as_json, figures_of, show
from llmscale.evaluate.tasks import Selection, Task, load_tasks


@dataclass(frozen=True)
class Contamination:
    """What training may have seen of the items."""

    run: Path
    """Whose training."""
    before: str | None = None
    """An earlier checkpoint (or run, or artefact) that was evaluated on the same items."""


@dataclass(frozen=True)
class Where:
    """On what a model is evaluated."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: str = "auto"
    """As `engine.dtype`."""
    overrides: tuple[str, ...] = ()
    """Settings of `parallel` and `engine`, for several ranks."""


def evaluate_on_tasks(
    checkpoint: str,
    tasks: Sequence[str],
    data: Sequence[str],
    data_root: str | None,
    choices: Choices,
    where: Where,
    metrics: Sequence[str] = (),
    json: bool = False,
    contamination: Contamination | None = None,
) -> None:
    """Evaluate a checkpoint on tasks and print what comes of it.

    Args:
        tasks: names of tasks and suites, or paths of their files; `held-out` is that of the run's own held-out pairs.
        data: `task=path` in place of what task files name.
        metrics: in place of the tasks' own.
        contamination: look for the items in what a run was trained on.

    Raises:
        UserError: an unknown task, data that are missing or wrong, no intact checkpoint, a layout or a model that a
            task is not for, or a run whose training data cannot be read again.
    """
    with _placed(checkpoint, where) as placed:
        selection = _selected(placed, tasks, data, data_root, metrics)
        leads = placed.scoring.grid.rank == 0
        look = together(lambda: _look(contamination, placed, selection.tasks, choices.limit) if leads else None)
        prepared = prepare(placed, selection.tasks, choices)
        if leads:
            for each in prepared:
                for warning in each.warnings:
                    tell(warning)
        run(prepared, Progress(leads))
    if not leads:
        return
    if look is not None:
        look.write([each.folder for each in prepared])
    before = None if look is None else look.before
    results = [figures_of(load_artefact(each.folder), metrics, before) for each in prepared]
    if json:
        click.echo(as_json(results, selection.suites))
    else:
        show(results, selection.suites)


def _selected(
    placed: Placed, names: Sequence[str], data: Sequence[str], data_root: str | None, metrics: Sequence[str]
) -> Selection:
    selection = load_tasks([name for name in names if name != HELD_OUT], data, data_root)
    for task in selection.tasks:
        for metric in metrics:
            with about(f"task {task.name}"):
                check_metric(metric, task.kind)
    if HELD_OUT not in names:
        return selection
    asked = placed.config.evaluation.generate or (GenerateConfig(metrics=list(metrics)) if metrics else None)
    if asked is None:
        raise UserError(
            f"--tasks names {HELD_OUT}, but the config of {placed.source.path} has no evaluation.generate; give"
            f" --metrics too, such as bleu"
        )
    own = held_out_task(placed.config, asked, placed.tokenizer)
    return Selection([*selection.tasks, own], selection.suites)


def _look(asked: Contamination | None, placed: Placed, tasks: Sequence[Task], limit: int | None) -> _Look | None:
    return None if asked is None else _Look(asked, placed.source, tasks, limit)


class _Look:
    """Looks for the items of tasks in what a run was trained on."""

    def __init__(self, asked: Contamination, source: Source, tasks: Sequence[Task], limit: int | None) -> None:
        """Raises UserError as `TrainedOn` and `load_before`."""
        own = Path(source.path).parent
        until = source.step if own.name == "checkpoints" and own.parent.resolve() == asked.run.resolve() else None
        names = [task.name for task in tasks]
        self.before: Model | None = None if asked.before is None else load_before(asked.before, names)
        self._trained_on = TrainedOn(asked.run, until)
        self._asked = [asked_of(task, limit) for task in tasks]

    def write(self, folders: Sequence[Path]) -> None:
        """Keep what is found beside the artefacts."""
        progress, what = Progress(noun="steps"), f"what {self._trained_on.run} was trained on"
        found = self._trained_on.look_for(self._asked, lambda step, steps: progress(what, step, steps))
        for folder, seen in zip(folders, found, strict=True):
            write_seen(folder, seen)


@contextlib.contextmanager
def _placed(checkpoint: str, where: Where) -> Iterator[Placed]:
    """The model in this process, or in all that a launcher has started."""
    world = read_world(where.device)
    if read_place().size == 1 and not where.overrides:
        dtype = resolve_dtype("fp32" if where.dtype == "auto" else where.dtype, world.device)
        yield place_whole(checkpoint, world.device, dtype)
        return
    with named_losses(), contextlib.ExitStack() as stack:
        if world.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
        join(world, settings={"checkpoint": str(checkpoint), "overrides": list(where.overrides)})
        stack.callback(leave)
        placed = place_on_ranks(checkpoint, where.overrides, world, "fp32" if where.dtype == "auto" else where.dtype)
        stack.callback(placed.close)
        yield placed
        on_rank_zero(lambda: None)  # nobody leaves while rank 0 still writes
