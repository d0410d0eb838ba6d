"""A preemption signal in the middle of tasks, during training and at its end: they stop there, and go on there."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.records import read_records
from llmscale.checkpoint.manifest import read_manifest
from llmscale.parity.ranks import free_port
from tests.evaluate.models import write_tasks
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, Finished, run, run_on_ranks
from tests.train.runs import evaluations, ledger, metrics
from tests.train.test_classification import write_run
from tests.train.test_signal_phases import ONE, TWO, signalled

SCORES, WRITES = "llmscale.evaluate.scoring:batches_of", "llmscale.generate.generator:_Writer.take"
PLACES: dict[str, tuple[str, str, int, tuple[int, ...], float]] = {
    "choice at step 2": ("choice", SCORES, 1, ONE, 0.2),
    "write at step 2": ("write", WRITES, 5, ONE, 0.2),
    "choice at the end": ("choice", SCORES, 2, (signal.SIGUSR1,), 0.2),
    "write at the end": ("write", WRITES, 17, ONE, 0.2),
    "write at the end, twice": ("write", WRITES, 17, TWO, 60),
}
"""The task that a signal cuts short, and when it comes: 12 tokens are written at step 2, and 24 at the end."""

FAST = ("write at the end",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    path = write_tiny_run(folder, holdout=0.02)
    settings = yaml.safe_load(path.read_text())
    settings["model"]["max_positions"] = 192
    settings["train"]["steps"] = 4
    settings["evaluation"] = {
        **{"interval": 2, "task_limit": 3, "tasks": ["tasks/choice.yaml", "tasks/write.yaml"]},
        "best": "choice/accuracy",
    }
    path.write_text(yaml.safe_dump(settings))
    write_tasks(folder / "tasks", items=6)
    written = {"kind": "generate", "context": "{{ text }}", "references": ["{{ last }}"], "max_new_tokens": 4}
    written |= {"data": {"files": ["likelihood.jsonl"]}, "until": []}
    (folder / "tasks" / "write.yaml").write_text(yaml.safe_dump(written))
    done = run("train", "config.yaml", "run.directory=good", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def lines_of(run_folder: Path) -> dict[tuple[int, str], bytes]:
    """By step and task, what an artefact holds; the folders' names have the layout in their digests."""
    found = {}
    for path in run_folder.glob("evaluations/*/items.jsonl"):
        _, step, task, _ = path.parent.name.split("-")
        found[int(step), task] = path.read_bytes()
    return found


def tasks_of(run_folder: Path) -> list[dict[str, Any]]:
    rows = read_records(run_folder / "metrics.jsonl")
    return [{"step": row["step"], **row["tasks"]} for row in rows if "tasks" in row]


def best_of(run_folder: Path) -> Any:
    return read_manifest(max((run_folder / "checkpoints").glob("step-*"))).progress["best"]


def assert_equal(folder: Path, name: str, good: str) -> None:
    run_folder, other = folder / name, folder / good
    assert metrics(run_folder) == metrics(other)
    assert ledger(run_folder) == ledger(other)
    assert evaluations(run_folder) == evaluations(other)
    assert tasks_of(run_folder) == tasks_of(other)
    assert lines_of(run_folder) == lines_of(other)
    assert best_of(run_folder) == best_of(other)


@pytest.mark.parametrize(
    "place",
    [name if number in (1, 2) else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(PLACES)],
)
def test_a_signal_in(place: str, folder: Path) -> None:
    task, *how = PLACES[place]
    name = place.replace(" ", "-").replace(",", "")
    command = ("train", "config.yaml", f"run.directory={name}")
    ended = Command(*command, cwd=folder, prepare=partial(signalled, *how)).finish(timeout=50)
    assert ended.returncode == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    step = 4 if "end" in place else 2
    assert json.loads((folder / name / "outcome.json").read_text())["outcome"] == "preempted"
    assert max((folder / name / "checkpoints").glob("step-*")).name == f"step-{step:08d}"
    # Nothing of the task is done, which has one window of items.
    assert not lines_of(folder / name).get((step, task))
    again = run(*command, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert_equal(folder, name, "good")


def only(rank: int, prepare: Callable[[], object]) -> None:
    if os.environ["RANK"] == str(rank):
        prepare()


def on_ranks(ranks: int, command: tuple[str, ...], folder: Path, prepare: Callable[[], object]) -> list[Finished]:
    addresses = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    each = [
        Command(*command, cwd=folder, prepare=prepare, **addresses, RANK=rank, LOCAL_RANK=rank) for rank in range(ranks)
    ]
    return [rank.finish(timeout=60) for rank in each]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["choice at step 2", "write at the end"])
def test_one_rank_is_told(place: str, folder: Path) -> None:
    """The others leave with it."""
    settings = ("train", "config.yaml", "engine.zero_stage=2")
    good = run_on_ranks(2, *settings, "run.directory=two", cwd=folder)
    assert good.returncode == 0, good.stderr
    task, attribute, call, numbers, pause = PLACES[place]
    name = f"two-{place.replace(' ', '-')}"
    command = (*settings, f"run.directory={name}")
    call = {"choice at step 2": 1, "write at the end": 8}[place]  # of rank 1, which writes for half the items
    told_alone = partial(only, 1, partial(signalled, attribute, call, numbers, pause))
    for ended in on_ranks(2, command, folder, told_alone):
        assert ended.returncode == 75, ended.stderr
        assert "Traceback" not in ended.stderr
    assert not lines_of(folder / name).get((4 if "end" in place else 2, task))
    again = run_on_ranks(2, *command, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert_equal(folder, name, "two")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_between_batches_that_a_head_is_asked(ranks: int, tmp_path: Path) -> None:
    """All items are one window, of which the first batch alone is computed."""
    write_run(tmp_path)
    task = {"kind": "classify", "text": "{{ sentence }}", "labels": ["0", "1"], "gold": "{{ stars }}"}
    (tmp_path / "stars.yaml").write_text(yaml.safe_dump({**task, "data": {"files": ["rows.jsonl"]}}))
    settings = ("model.next_sentence=false", "train.steps=3", "evaluation.interval=2", "evaluation.tasks=[stars.yaml]",
                "evaluation.best=stars/accuracy")  # fmt: skip
    command = ("train", "config.yaml", *settings, "run.directory=cut")
    prepare = partial(only, ranks - 1, partial(signalled, "llmscale.evaluate.heads.classify:make_batch", 1, ONE, 0.2))
    for ended in on_ranks(ranks, command, tmp_path, prepare):
        assert ended.returncode == 75, ended.stderr
        assert "Traceback" not in ended.stderr
    assert not lines_of(tmp_path / "cut").get((2, "stars"))
    for name in ("cut", "good"):
        done = run_on_ranks(ranks, *command[:-1], f"run.directory={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "cut").keys() == {(2, "stars"), (3, "stars")}
    assert_equal(tmp_path, "cut", "good")
