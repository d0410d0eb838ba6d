"""`llmscale eval --tasks`, `--list`, and of an artefact."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import click
import torch

from data_pipeline.base.progress import Progress
from data_pipeline.base.terminal import tell
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import join, leave, named_losses, read_world
from llmscale.distributed.ranks import read_place
from llmscale.engine.engine import resolve_dtype
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.placed import Placed, place_on_ranks, place_whole
from llmscale.evaluate.results import TaskFigures, as_json, figures_of, show
from llmscale.evaluate.tasks import load_tasks


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
) -> None:
    """Evaluate a checkpoint on tasks and print what comes of it.

    Args:
        tasks: names of tasks and suites, or paths of their files.
        data: `task=path` in place of what task files name.
        metrics: in place of the tasks' own.

    Raises:
        UserError: an unknown task, data that are missing or wrong, no intact checkpoint, or a layout or a model that a
            task is not for.
    """
    with _placed(checkpoint, where) as placed:
        selection = load_tasks(tasks, data, data_root)
        prepared = prepare(placed, selection.tasks, choices)
        leads = placed.scoring.grid.rank == 0
        if leads:
            for each in prepared:
                for warning in each.warnings:
                    tell(warning)
        run(prepared, Progress(leads))
        if leads:
            results: list[TaskFigures] = []
            for each in prepared:
                results.append(figures_of(load_artefact(each.folder), metrics))
            if json:
                click.echo(as_json(results, selection.suites))
            else:
                show(results, selection.suites)


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
