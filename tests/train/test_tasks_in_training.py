"""Tasks at intervals while a run goes on: they change no loss, their best checkpoint stays, and may end the run."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from data_pipeline.base.records import read_records
from llmscale.checkpoint.manifest import read_manifest
from llmscale.evaluate.artefact_files import load_artefact
from tests.evaluate.models import write_tasks
from tests.tiny_run import losses, write_tiny_run
from tests.train import forked
from tests.train.forked import Command, Finished


def run(config: Path, *overrides: str) -> Finished:
    return forked.run("train", config, *overrides, cwd=config.parent)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = write_tiny_run(tmp_path)
    settings = yaml.safe_load(path.read_text())
    settings["train"]["steps"] = 8
    settings["checkpoint"] = {"interval": 4, "keep": 1}
    settings["model"]["max_positions"] = 192
    settings["data"]["holdout"] = 0.1
    path.write_text(yaml.safe_dump(settings))
    write_tasks(tmp_path / "tasks", items=6)
    return path


TASKS = ("evaluation.tasks=[tasks/choice.yaml, tasks/likelihood.yaml]", "evaluation.interval=2")


def test_tasks_change_no_loss_and_leave_artefacts(config: Path, tmp_path: Path) -> None:
    plain = run(config, "evaluation.interval=2")
    assert plain.returncode == 0, plain.stderr
    without = losses(tmp_path / "run")
    written = {"kind": "generate", "context": "{{ text }}", "references": ["{{ last }}"], "max_new_tokens": 4}
    written["data"] = {"files": ["likelihood.jsonl"]}
    (tmp_path / "tasks" / "write.yaml").write_text(yaml.safe_dump(written))
    tasks = "evaluation.tasks=[tasks/choice.yaml, tasks/likelihood.yaml, tasks/write.yaml]"
    with_tasks = run(config, tasks, "evaluation.interval=2", "run.directory=with", "evaluation.task_limit=3")
    assert with_tasks.returncode == 0, with_tasks.stderr
    assert losses(tmp_path / "with") == without
    rows = [row for row in read_records(tmp_path / "with" / "metrics.jsonl") if "tasks" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [row["tasks"]["choice/accuracy"]["items"] for row in rows] == [3, 3, 3, 6]
    for row in rows:
        (folder,) = (tmp_path / "with" / "evaluations").glob(f"step-{row['step']:08d}-choice-*")
        artefact = load_artefact(folder)
        assert len(artefact.records) == row["tasks"]["choice/accuracy"]["items"]
    assert "choice/accuracy" in with_tasks.stderr
    # What the finished model scores afterwards, by itself, is what it scored then.
    again = forked.run("eval", "with", "--tasks", "tasks/choice.yaml,tasks/write.yaml", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    figures, _ = json.loads(again.stdout)["tasks"]
    assert figures["metrics"]["accuracy"]["value"] == rows[-1]["tasks"]["choice/accuracy"]["value"]
    for name in ("choice", "write"):
        both = list((tmp_path / "with" / "evaluations").glob(f"step-{8:08d}-{name}-*/items.jsonl"))
        assert len(both) == 2
        assert both[0].read_bytes() == both[1].read_bytes()
    kept = forked.run("eval", "with/evaluations", "--metrics", "brier_score", "--json", cwd=tmp_path)
    assert "likelihood" in kept.stderr  # which has no such score
    all_of_them = forked.run("eval", "with/evaluations", "--json", cwd=tmp_path)
    assert len(json.loads(all_of_them.stdout)["tasks"]) == len(
        list((tmp_path / "with/evaluations").glob("*/items.jsonl"))
    )


def test_an_item_of_the_final_evaluation_is_refused_before_the_first_step(config: Path, tmp_path: Path) -> None:
    items = tmp_path / "tasks" / "choice.jsonl"
    first, *others = items.read_text().splitlines()
    long = {key: value * 300 if isinstance(value, str) else value for key, value in json.loads(first).items()}
    items.write_text("\n".join([first, *others, json.dumps(long)]) + "\n")
    one = ("evaluation.tasks=[tasks/choice.yaml]", "evaluation.task_limit=3", "evaluation.interval=4")
    refused = run(config, *one)
    assert refused.returncode == 2
    assert "evaluation.task_overflow" in refused.stderr
    assert "item" in refused.stderr
    assert not losses(tmp_path / "run")
    taken = run(config, *one, "evaluation.task_overflow=truncate-left", "run.directory=other")
    assert taken.returncode == 0, taken.stderr


def test_the_best_checkpoint_stays_and_patience_ends_the_run(config: Path, tmp_path: Path) -> None:
    # With a rate of 0 after the first steps nothing improves any more.
    settings = ("optimizer.lr=1e-9", "evaluation.best=loss", "evaluation.patience=2", "evaluation.interval=1")
    settings += ("evaluation.max_samples=48",)
    ended = run(config, *settings, "train.steps=40", "checkpoint.interval=100", "optimizer.weight_decay=0")
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    rows = [row for row in read_records(tmp_path / "run" / "metrics.jsonl") if "evaluation" in row]
    values = [row["evaluation"]["loss"] for row in rows]
    assert outcome["outcome"] == "done"
    assert outcome["step"] < 40
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    newest = read_manifest(tmp_path / "run" / "checkpoints" / kept[-1])
    best = newest.progress["best"]
    first = min(range(outcome["step"]), key=lambda place: values[place])
    assert best == {"metric": "loss", "value": values[first], "step": first + 1, "since": 2, "compared": first + 3}
    assert outcome["step"] == best["step"] + 2
    assert f"step-{best['step']:08d}" in kept
    assert "has not improved in 2 evaluations" in ended.stderr
    again = run(config, *settings, "train.steps=40", "checkpoint.interval=100", "optimizer.weight_decay=0")
    assert again.returncode == 0
    assert "is finished" in again.stderr


@pytest.mark.slow
def test_a_killed_run_knows_its_best_step(config: Path, tmp_path: Path) -> None:
    settings = (*TASKS, "evaluation.best=likelihood/target_perplexity", "evaluation.interval=1", "train.steps=14")
    whole = run(config, *settings, "run.directory=whole")
    assert whole.returncode == 0, whole.stderr
    for delay in (6, 11):
        process = Command("train", config, *settings, "run.directory=killed", cwd=tmp_path)
        end = time.monotonic() + 240
        while max(losses(tmp_path / "killed"), default=0) < delay and time.monotonic() < end:
            time.sleep(0.02)
        process.signal(signal.SIGKILL)
        process.finish()
    ended = run(config, *settings, "run.directory=killed")
    assert ended.returncode == 0, ended.stderr
    newest = [
        read_manifest(max((tmp_path / name / "checkpoints").glob("step-*"))).progress["best"]
        for name in ("whole", "killed")
    ]
    assert newest[0] == newest[1]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("evaluation.tasks=[nonsense]",), "nonsense"),
        (("evaluation.best=loss", "evaluation.interval=0"), "set interval"),
        (("evaluation.patience=2",), "set best"),
        ((*TASKS, "evaluation.best=choice/nonsense"), "choice/accuracy"),
        (('evaluation.generate={"metrics": ["bleu"]}', "evaluation.interval=2"), "objective.name is causal"),
    ],
)
def test_what_cannot_be_evaluated_is_said(config: Path, overrides: tuple[str, ...], said: str) -> None:
    ended = run(config, *overrides)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_classifier_is_evaluated_while_it_trains(tmp_path: Path) -> None:
    """What its head says of a task's texts then is what the checkpoint says afterwards, and what is held out agrees."""
    path = write_tiny_run(tmp_path)
    settings = yaml.safe_load(path.read_text())
    rows = [
        {"text": text, "label": "ab"[number % 2]} for number, text in enumerate(["one", "two", "a longer text"] * 6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "paths": ["rows.jsonl"], "fields": {"label": "label"}}
    settings["data"] |= {"sources": [source], "evaluation": [source], "order": "finite"}
    settings["objective"] = {"name": "classification", "labels": ["a", "b"], "pooling": "last"}
    path.write_text(yaml.safe_dump(settings))
    task = {"kind": "classify", "data": {"files": ["rows.jsonl"]}, "text": "{{ text }}", "labels": ["b", "a"]}
    (tmp_path / "ab.yaml").write_text(yaml.safe_dump({**task, "gold": "{{ label }}", "gold_as": "text"}))
    done = run(path, "evaluation.tasks=[./ab.yaml]", "evaluation.interval=3")
    assert done.returncode == 0, done.stderr
    metrics = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    seen = {row["step"]: row["tasks"]["ab/accuracy"]["value"] for row in metrics if "tasks" in row}
    assert list(seen) == [3, 6]
    held = {row["step"]: row["evaluation"]["accuracy"] for row in metrics if "evaluation" in row}
    assert seen == pytest.approx(held)
    again = forked.run("eval", "run", "--tasks", "./ab.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (tmp_path / "run" / "evaluations").glob("step-00000006-ab-*/items.jsonl")
    assert first.read_bytes() == second.read_bytes()
