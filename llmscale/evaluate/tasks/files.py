"""Task files and suites: where they are, and what is wrong with one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError
from yaml.constructor import ConstructorError

from data_pipeline.base.durable import read_text
from data_pipeline.base.errors import UserError
from data_pipeline.base.section import Section
from llmscale.config.explain import first_problem
from llmscale.config.yaml_files import BoundedLoader, read_yaml
from llmscale.evaluate.metrics import check_metric
from llmscale.evaluate.tasks.kinds import kinds
from llmscale.evaluate.tasks.settings import TaskSettings

SHIPPED = Path(__file__).resolve().parent / "shipped"
"""The project's own, a link to `configs/tasks` where the package is not installed from a wheel."""


class SuiteSettings(Section):
    """A suite file. Its mean is over its tasks (macro), or over all their items (micro)."""

    suite: str = Field(pattern=r"^[\w.\-]+$")
    """What it is called."""
    description: str = ""
    """One line about it."""
    language: str = "en"
    """Of most of its tasks."""
    tasks: list[str] = Field(min_length=1)
    """Tasks or other suites: names, or paths relative to this file."""


class TaskFile(NamedTuple):
    """A file of either sort that was read."""

    path: Path
    settings: TaskSettings | SuiteSettings

    @property
    def name(self) -> str:
        """What it is called."""
        if isinstance(self.settings, SuiteSettings):
            return self.settings.suite
        return self.settings.name or self.path.stem


class Listed(NamedTuple):
    """A task or suite that can be named, as `llmscale eval --list` shows it."""

    name: str
    kind: str
    """Of the task; `suite` for a suite."""
    language: str
    description: str
    hub: str | None
    """The data set on the hub; None where the data come from files, and for a suite."""


def available_tasks() -> list[Listed]:
    """All tasks and suites that are shipped, by name."""
    return [_listed(read_task_file(path)) for path in sorted(SHIPPED.glob("*.yaml"))]


def _listed(file: TaskFile) -> Listed:
    settings = file.settings
    if isinstance(settings, SuiteSettings):
        return Listed(file.name, "suite", settings.language, settings.description, None)
    return Listed(file.name, kind_of(settings), settings.language, settings.description, settings.data.hub)


def kind_of(settings: TaskSettings) -> str:
    """The kind of a task."""
    return next(name for name, kind in kinds().items() if type(settings) is kind)


def require_metrics(path: Path, settings: TaskSettings) -> None:
    """Refuse metrics of a task that are not known, or not for its kind; raises UserError with their line."""
    for number, metric in enumerate(settings.metrics):
        try:
            check_metric(metric, kind_of(settings))
        except UserError as error:
            raise UserError(f"{path}{_line(path, ['metrics', str(number)])}: {error}") from None


def find_task_file(name: str, folder: Path | None = None) -> TaskFile:
    """The file of a task or suite that is named, or given by its path.

    Args:
        folder: what a relative path is relative to; the working directory where not given.

    Raises:
        UserError: there is none, or it is not valid.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return read_task_file(Path(folder or "") / name)
    path = SHIPPED / f"{name}.yaml"
    if path.is_file():
        return read_task_file(path)
    known = [each.stem for each in sorted(SHIPPED.glob("*.yaml"))]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"no task {name!r}: {hint}; a file of yours is given by its path, such as ./{name}.yaml")


def read_task_file(path: Path) -> TaskFile:
    """The settings of a task or a suite.

    Raises:
        UserError: it cannot be read, or is not valid; with the line of what is wrong, and near names.
    """
    raw = read_yaml(path, "task", "'kind:' and 'data:'", _UniqueLoader)
    model: type[TaskSettings] | type[SuiteSettings] = SuiteSettings if "suite" in raw else _kind(raw, path)
    try:
        return TaskFile(path, model.model_validate(raw))
    except ValidationError as error:
        keys, sentence = first_problem(error, model)
        raise UserError(f"{path}{_line(path, keys)}: {sentence}") from None


def _kind(raw: dict[str, Any], path: Path) -> type[TaskSettings]:
    known = kinds()
    name = raw.get("kind")
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
        what = "'kind' is missing" if "kind" not in raw else f"'kind' is {name!r}, which is not known"
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(known)}"
        raise UserError(f"{path}{_line(path, ['kind'])}: {what}; {hint}")
    return known[name]


class _UniqueLoader(BoundedLoader):
    """YAML in which no key stands twice in a mapping, where the last one would count."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice; keep one", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _line(path: Path, keys: list[str]) -> str:
    """`:12` for the line of a key that a file has; of the nearest one above it else."""
    node = yaml.compose(read_text(path), Loader=BoundedLoader)
    line = ""
    for key in keys:
        below = next((pair for pair in _children(node) if pair[0] == key), None)
        if below is None:
            break
        line, node = f":{below[1] + 1}", below[2]
    return line


def _children(node: Any) -> Iterator[tuple[str, int, Any]]:
    """(key or index, line from 0, value) of a mapping or list."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, key.start_mark.line, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((str(place), value.start_mark.line, value) for place, value in enumerate(node.value))
