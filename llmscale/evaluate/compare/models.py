"""Evaluations of models that are to be compared: found by what the user names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from llmscale.evaluate.artefact import ITEMS_FILE, META_FILE, Meta
from llmscale.evaluate.artefact_files import load_artefact, load_meta
from llmscale.evaluate.compare import harness
from llmscale.evaluate.compare.scored import Scored, ScoredArtefact
from llmscale.evaluate.statistics.training_noise import Repeats

EVALUATIONS = "evaluations"
"""Folder of a run, or of a checkpoint, that holds artefacts."""
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Model:
    """A model, by the evaluations of several seeds or of its last checkpoints, if there are several."""

    name: str
    evaluations: dict[str, list[Scored]]
    """By task, in the order of training; of checkpoints the last is the model."""
    repeats: Repeats


@dataclass(frozen=True)
class _Found:
    """An evaluation that is not read yet."""

    task: str
    step: int | None
    order: tuple[int, float, str]
    """Later evaluations have larger ones."""
    same: object
    """Equal for evaluations that differ by the checkpoint alone."""
    load: Callable[[], Scored]


def load_model(argument: str, checkpoints: int = 1, tasks: Iterable[str] = ()) -> Model:
    """The newest evaluation of each task, of an artefact, a run, a checkpoint or lm-eval's samples.

    Args:
        argument: a path, or several of them with commas between, which are runs that differ by their seed.
        checkpoints: of how many of a run's last checkpoints to read evaluations.
        tasks: only these; all without any.

    Raises:
        UserError: there is no evaluation, or a damaged one.
    """
    parts = [argument] if Path(argument).exists() else argument.split(",")
    if len(parts) > 1 and checkpoints > 1:
        raise UserError(
            f"{argument} names {len(parts)} seeds and --checkpoints {checkpoints} asks for checkpoints; the noise of"
            " training is measured by one of them"
        )
    wanted = set(tasks)
    evaluations: dict[str, list[Scored]] = {}
    for part in parts:
        by_task: dict[str, list[_Found]] = {}
        for found in _find(Path(part)):
            if not wanted or found.task in wanted:
                by_task.setdefault(found.task, []).append(found)
        for task, choices in by_task.items():
            chosen = _last_checkpoints(choices, checkpoints)
            evaluations.setdefault(task, []).extend(found.load() for found in chosen)
    for task in [task for task, repeats in evaluations.items() if len(parts) > 1 and len(repeats) < len(parts)]:
        tell(f"warning: {task} is left out, since only {len(evaluations.pop(task))} of {argument} were evaluated on it")
    return Model(argument, evaluations, "seeds" if len(parts) > 1 else "checkpoints")


def _last_checkpoints(choices: list[_Found], checkpoints: int) -> list[_Found]:
    """The newest evaluation, and those like it of checkpoints before, the newest of each."""
    newest = max(choices, key=lambda found: found.order)
    by_step = {
        found.step: found for found in sorted(choices, key=lambda found: found.order) if found.same == newest.same
    }
    return sorted(by_step.values(), key=lambda found: found.order)[-checkpoints:]


def _find(path: Path) -> list[_Found]:
    if path.is_file():
        return [_samples(path)]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; name an artefact, a run, a checkpoint or lm-eval's {harness.PATTERN}")
    if (path / META_FILE).is_file():
        return [_artefact(path)]
    step = None
    folder = path / EVALUATIONS if (path / EVALUATIONS).is_dir() else path
    if folder == path and path.parent.name == "checkpoints" and (path.parents[1] / EVALUATIONS).is_dir():
        folder, step = path.parents[1] / EVALUATIONS, step_of(path.name)
    found = [_artefact(meta.parent) for meta in sorted(folder.rglob(META_FILE))]
    found = [artefact for artefact in found if step is None or artefact.step == step]
    found = found or [_samples(file) for file in sorted(folder.rglob(harness.PATTERN))]
    if not found:
        raise UserError(f"{path} has no evaluation; make one by: llmscale eval {path} --tasks ...")
    return found


def _artefact(folder: Path) -> _Found:
    meta = load_meta(folder)
    step = step_of(folder.name) if step_of(folder.name) is not None else step_of(Path(meta.checkpoint).name)
    items = folder / ITEMS_FILE
    changed = items.stat().st_mtime if items.exists() else 0.0
    same = (meta.task_digest, meta.limited, meta.few_shot, meta.reading, meta.scorer, repr(meta.options))
    order = (-1 if step is None else step, changed, folder.name)
    return _Found(meta.task, step, order, same, lambda: _loaded(folder))


def _loaded(folder: Path) -> Scored:
    artefact = load_artefact(folder)
    expected = _expected(artefact.meta)
    if not artefact.records:
        raise UserError(f"{folder} has no item yet; let its evaluation go on, or name another one")
    if len(artefact.records) < expected:
        count = f"{len(artefact.records):,} of {expected:,} items"
        tell(f"warning: {folder} has {count}, since its evaluation was interrupted")
    return ScoredArtefact(artefact)


def _expected(meta: Meta) -> int:
    return meta.items if meta.limited is None else min(meta.items, meta.limited)


def _samples(path: Path) -> _Found:
    task, date = harness.task_and_date(path)
    return _Found(task, None, (-1, 0.0, date), None, lambda: harness.HarnessSamples(path))


def step_of(name: str) -> int | None:
    """The step that the name of a checkpoint or an artefact begins with."""
    match = _STEP.match(name)
    return int(match[1]) if match else None
