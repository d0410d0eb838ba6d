"""A start that was cut short at any operation on a file: the same command starts, and gives the same run."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.forked import run, run_many
from tests.train.runs import evaluations, files_of, ledger, metrics

SETTINGS = (
    *("train.steps=3", "checkpoint.interval=2", "data.holdout=0.05"),
    "data.tokenizer={kind: sentencepiece, train: {vocab_size: 400}}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run `good`, and in `states/` what its directory was before each operation on a file."""
    folder = tmp_path_factory.mktemp("starts")
    write_tiny_run(folder)
    watched = partial(copy_before_each_operation, folder / "good", folder / "states")
    done = run("train", "config.yaml", *SETTINGS, "run.directory=good", cwd=folder, prepare=watched)
    assert done.returncode == 0, done.stderr
    return folder


def copy_before_each_operation(run: Path, states: Path) -> None:
    """Keep what a kill would leave: a copy of `run` ahead of each change to a file in it."""
    states.mkdir()
    busy, last = False, None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy, last
        if busy or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") or not run.exists():
            return
        path = str(arguments[0])
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if reads or not (path.startswith(str(run)) or path.startswith(run.name)):
            return
        busy = True
        try:
            now = files_of(run), sorted(map(str, run.rglob("*")))
            if now != last:
                shutil.copytree(run, states / f"{len(list(states.iterdir())):03d}")
            last = now
        finally:
            busy = False

    sys.addaudithook(hook)


def assert_starts(folder: Path, names: list[str]) -> None:
    done = run_many([("train", "config.yaml", *SETTINGS, f"run.directory={name}") for name in names], folder)
    for name, each in zip(names, done, strict=True):
        assert each.returncode == 0, (name, each.stderr)
        for read in (metrics, ledger, evaluations):
            assert read(folder / name) == read(folder / "good"), name
        left = [path for path in (folder / name).rglob(".*") if path.name not in (".lock",)]
        assert not [path for path in left if path.name.startswith(".tmp-")], name


def test_killed_before_each_operation(folder: Path) -> None:
    """Some of them, as many as a few seconds allow."""
    states = sorted(path.name for path in (folder / "states").iterdir())
    assert len(states) > 30
    assert_starts(folder, [f"states/{name}" for name in states[:16:4]])


@pytest.mark.slow
def test_killed_before_every_operation(folder: Path) -> None:
    states = sorted(path.name for path in (folder / "states").iterdir())
    fresh = [f"states/{name}" for name in states if not (folder / "states" / name / "summary.json").exists()]
    assert_starts(folder, fresh)


MADE = {
    "before the config": ["checkpoints/", "logs/", ".lock"],
    "half a config": ["checkpoints/", "logs/", ".lock", ".tmp-config.yaml-7"],
    "an empty config": ["checkpoints/", "logs/", "config.yaml"],
    "half a tokenizer": ["tokenizer/", ".tokenizer-x/", "logs/"],
    "half a checkpoint": ["checkpoints/.tmp-step-00000002-attempt-1-save-1/", "checkpoints/.tmp-latest"],
}


def make(folder: Path, entries: list[str]) -> None:
    folder.mkdir()
    for entry in entries:
        path = folder / entry
        if entry.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def test_what_a_start_may_leave_is_no_obstacle(folder: Path) -> None:
    names = [case.replace(" ", "-") for case in MADE]
    for name, entries in zip(names, MADE.values(), strict=True):
        make(folder / name, entries)
    settings = [text for text in SETTINGS if "tokenizer" not in text]
    done = run_many([("train", "config.yaml", *settings, f"run.directory={name}") for name in names], folder)
    for name, each in zip(names, done, strict=True):
        assert each.returncode == 0, (name, each.stderr)
        assert len(metrics(folder / name)) == 3
        assert metrics(folder / name) == metrics(folder / names[0])


@pytest.mark.parametrize(
    "entries", [["thesis.txt"], ["logs/", "model.py"], ["checkpoints/epoch=3.ckpt"], ["checkpoints/step-x/", "logs/"]]
)
def test_what_no_start_leaves_is_somebody_elses(folder: Path, entries: list[str]) -> None:
    place = folder / f"foreign-{abs(hash(tuple(entries)))}"
    make(place, entries)
    [done] = run_many([("train", "config.yaml", *SETTINGS, f"run.directory={place.name}")], folder)
    assert done.returncode == 2
    assert "has files but no config.yaml" in done.stderr
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == sorted(
        {entry.rstrip("/") for entry in entries} | {entry.split("/")[0] for entry in entries}
    )
