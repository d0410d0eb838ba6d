"""The best step among all that were evaluated, the last one too, whose evaluation comes after its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.records import read_records
from llmscale.checkpoint.manifest import read_manifest
from llmscale.checkpoint.reader import Checkpoint
from tests.evaluate.models import write_tasks
from tests.tiny_run import write_tiny_run
from tests.train.forked import run, run_many, run_on_ranks

STEPS = 5
"""Which the interval of evaluations does not divide."""
COMMON = ("evaluation.interval=2", "evaluation.max_samples=5", "evaluation.task_limit=3", "checkpoint.keep=1")
TASKS = "evaluation.tasks=[tasks/likelihood.yaml]"
FIGURE = "likelihood/target_perplexity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    path = write_tiny_run(folder, holdout=0.05)
    settings = yaml.safe_load(path.read_text())
    settings |= {"schedule": {"name": "constant"}, "optimizer": {"lr": 0.01}, "checkpoint": {"interval": 2}}
    settings["train"]["steps"] = STEPS
    settings["model"]["max_positions"] = 192
    path.write_text(yaml.safe_dump(settings))
    write_tasks(folder / "tasks", items=6)
    commands = [
        ("train", "config.yaml", *COMMON, "evaluation.best=loss", "run.directory=loss"),
        ("train", "config.yaml", *COMMON, TASKS, f"evaluation.best={FIGURE}", "run.directory=task"),
        # Evaluates the same samples and items after every step, the last of the others among them.
        ("train", "config.yaml", *COMMON, TASKS, "evaluation.interval=1", "train.steps=6", "run.directory=every"),
    ]
    for done in run_many(commands, folder):
        assert done.returncode == 0, done.stderr
    return folder


def newest(run_folder: Path) -> Path:
    return max((run_folder / "checkpoints").glob("step-*"))


def best_of(run_folder: Path) -> dict[str, Any]:
    return read_manifest(newest(run_folder)).progress["best"]


def values(run_folder: Path, figure: str) -> dict[int, float]:
    """By step, of evaluations during training."""
    rows = read_records(run_folder / "metrics.jsonl")
    if figure == "loss":
        return {row["step"]: row["evaluation"]["loss"] for row in rows if "evaluation" in row}
    return {row["step"]: row["tasks"][figure]["value"] for row in rows if "tasks" in row}


@pytest.mark.parametrize(("name", "figure"), [("loss", "loss"), ("task", FIGURE)])
def test_the_last_step_may_be_the_best(name: str, figure: str, folder: Path) -> None:
    same = {step: value for step, value in values(folder / "every", figure).items() if step in (2, 4, 5)}
    assert min(same, key=lambda step: same[step]) == STEPS  # which it is here
    assert best_of(folder / name) == {
        "metric": figure, "value": same[STEPS], "step": STEPS, "since": 0, "compared": STEPS
    }  # fmt: skip
    # The final evaluation itself is of everything, and would be another figure.
    assert values(folder / name, figure)[STEPS] != same[STEPS]
    # Nothing is kept for having been the best before.
    assert [path.name for path in (folder / name / "checkpoints").glob("step-*")] == [f"step-{STEPS:08d}"]
    Checkpoint(newest(folder / name)).verify()


def test_a_run_that_goes_on_knows_it(folder: Path) -> None:
    more = ("train", "config.yaml", *COMMON, "evaluation.best=loss", "evaluation.patience=2", "optimizer.lr=0.01")
    first = run(*more, "run.directory=longer", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert best_of(folder / "longer") == best_of(folder / "loss")
    # What came after it was killed and is evaluated again counts once.
    outcome = folder / "longer" / "outcome.json"
    outcome.unlink()
    again = run(*more, "run.directory=longer", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert best_of(folder / "longer") == best_of(folder / "loss")
    longer = run(*more, "train.steps=7", "run.directory=longer", cwd=folder)
    assert longer.returncode == 0, longer.stderr
    losses = values(folder / "longer", "loss")
    best = best_of(folder / "longer")
    assert best["step"] in (6, 7)
    assert best["value"] <= losses[6]


@pytest.mark.slow
def test_ranks_agree(folder: Path) -> None:
    command = ("train", "config.yaml", *COMMON, TASKS, f"evaluation.best={FIGURE}", "run.directory=ranks")
    done = run_on_ranks(2, *command, "engine.zero_stage=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    ranks, alone = best_of(folder / "ranks"), best_of(folder / "task")
    assert ranks["value"] == pytest.approx(alone["value"], rel=1e-5)
    assert {**ranks, "value": 0} == {**alone, "value": 0}
