"""Which folders are checkpoints of a run: by name, by manifest and by the run's identity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from llmscale.checkpoint.errors import CorruptCheckpoint
from llmscale.checkpoint.manifest import TOKENIZER, Manifest, RunState, read_manifest
from llmscale.checkpoint.store import find_checkpoints, step_name
from llmscale.config import RunConfig, identity, load_config, parse_config

Identity = Mapping[str, Any]


def identity_of(state: RunState) -> Identity:
    """The identity of the run that a manifest is of, as this version states it; empty where it says nothing of it."""
    if state.config:
        try:
            return identity(parse_config(dict(state.config)))
        except UserError:
            pass  # a version with other settings
    return state.identity


def why_stranger(folder: Path, manifest: Manifest, run: Identity | None) -> str | None:
    """Why a folder of a run's `checkpoints` is none of its own; None where it is one.

    Args:
        folder: its name must be that of the manifest's step, so that a copy or a renamed one counts for nothing.
        run: the identity of the run; None: any.
    """
    own = step_name(manifest.step)
    if folder.name.removesuffix(".replaced") != own:
        return f"{folder} is not {folder.name}, since its manifest says step {manifest.step}; name it {own} or move it"
    theirs = identity_of(manifest) if run else None
    if not run or not theirs:
        return None
    differing = next((key for key in sorted({*run, *theirs}) if run.get(key) != theirs.get(key)), None)
    if differing is None:
        return None
    return (
        f"{folder} is of another run, with {differing} = {theirs.get(differing)!r} instead of {run.get(differing)!r};"
        f" move it away"
    )


def own_checkpoints(directory: str | Path, run: Identity | None = None) -> Iterator[tuple[Path, Manifest]]:
    """The checkpoints of a run or of its `checkpoints` folder, newest first, and their manifests, of which alone is
    known that they are intact. Nothing where there is no such folder.

    Raises:
        UserError: one of a newer format.
    """
    if not Path(directory).is_dir():
        return
    for folder in find_checkpoints(directory):
        try:
            manifest = read_manifest(folder)
        except CorruptCheckpoint:
            continue
        if why_stranger(folder, manifest, run) is None:
            yield folder, manifest


def recorded_config(directory: Path) -> RunConfig:
    """The config of a run, by config.yaml; where that is damaged, or no checkpoint agrees with it, by the newest one.

    Args:
        directory: the run, or its `checkpoints` folder.

    Raises:
        UserError: neither can be read.
    """
    folder = directory.parent if directory.name == "checkpoints" else directory
    problem: UserError | None = None
    recorded: RunConfig | None = None
    try:
        recorded = load_config(folder / "config.yaml")
    except UserError as error:
        problem = error
    newest = next((manifest for _, manifest in own_checkpoints(directory) if manifest.config), None)
    if recorded is not None and (newest is None or next(own_checkpoints(directory, identity(recorded)), None)):
        return recorded
    if newest is not None:
        return parse_config(dict(newest.config), origin=str(directory))
    assert problem is not None
    raise problem


def recorded_tokenizer(run: Path) -> Tokenizer:
    """The run's tokenizer, or a checkpoint's copy where that is damaged; raises UserError where there is none."""
    copies = [folder / TOKENIZER for folder, _ in own_checkpoints(run)]
    for folder in (run / TOKENIZER, *copies):
        with contextlib.suppress(UserError):
            return load_tokenizer(folder)
    return load_tokenizer(run / TOKENIZER)


def recorded_identity(directory: Path) -> Identity | None:
    """The identity of the run of `recorded_config`; None where nothing says it."""
    try:
        return identity(recorded_config(directory))
    except UserError:
        return None
