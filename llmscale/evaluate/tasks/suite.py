"""Suites of tasks, and the tasks and data that a command line names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from llmscale.evaluate.tasks.data import DataChoice
from llmscale.evaluate.tasks.files import SuiteSettings, TaskFile, find_task_file
from llmscale.evaluate.tasks.task import Task

DataPaths = dict[str, dict[str | None, str]]
"""For each task, a file, pattern or folder by split; None for the split that is evaluated."""


@dataclass(frozen=True)
class Suite:
    """Tasks that are shown with their mean: over tasks (macro), and over all items (micro)."""

    name: str
    description: str
    tasks: tuple[str, ...]
    """Names of its tasks, those of suites within it included, each once."""


@dataclass(frozen=True)
class Selection:
    """What is evaluated."""

    tasks: list[Task]
    """Each once, in the order in which they were named."""
    suites: list[Suite]


def load_tasks(names: Sequence[str], data: Iterable[str] = (), data_root: str | None = None) -> Selection:
    """The tasks and suites that are named.

    Args:
        names: of tasks or suites, or paths of their files.
        data: `task=path` or `task:split=path`, as `--data` takes it.
        data_root: as `load_task` takes it.

    Raises:
        UserError: one is not known or not valid, a suite contains itself, or data are for no task that is named.
    """
    tasks: dict[str, TaskFile] = {}
    suites: list[Suite] = []
    for name in names:
        file = find_task_file(name)
        members = _members(file, ())
        if isinstance(file.settings, SuiteSettings):
            suites.append(
                Suite(file.name, file.settings.description, tuple(dict.fromkeys(each.name for each in members)))
            )
        for each in members:
            other = tasks.setdefault(each.name, each)
            if not os.path.samefile(other.path, each.path):
                raise UserError(f"{other.path} and {each.path} are both called {each.name}; give one another name")
    paths = data_paths(data)
    unknown = [name for name in paths if name not in tasks]
    if unknown:
        raise UserError(f"--data names {unknown[0]}, but the tasks are {', '.join(tasks)}; name one of them")
    choices = {name: DataChoice(paths.get(name, {}), data_root) for name in tasks}
    return Selection([Task.of_file(file, choices[name]) for name, file in tasks.items()], suites)


def data_paths(options: Iterable[str]) -> DataPaths:
    """Paths by task and split.

    Raises:
        UserError: one is not of the form `task=path` or `task:split=path`, or two are for the same.
    """
    paths: DataPaths = {}
    for option in options:
        key, equals, path = option.partition("=")
        task, colon, split = key.partition(":")
        if not (equals and task and path) or (colon and not split):
            raise UserError(
                f"--data {option!r} is not of the form task=path or task:split=path, such as sciq=sciq.jsonl"
            )
        known = paths.setdefault(task, {})
        if known.setdefault(split or None, path) != path:
            raise UserError(f"--data gives {key} both {known[split or None]} and {path}; give one of them")
    return paths


def _members(file: TaskFile, above: tuple[Path, ...]) -> list[TaskFile]:
    """The tasks of a suite, those of suites within it included; a task alone is itself."""
    if not isinstance(file.settings, SuiteSettings):
        return [file]
    path = file.path.resolve()
    if path in above:
        raise UserError(f"{file.path}: suite {file.name} contains itself; leave it out of tasks")
    members = []
    for name in file.settings.tasks:
        members += _members(find_task_file(name, file.path.parent), (*above, path))
    return members
