"""Texts that a model writes of its own held-out sources while it trains, and figures of them."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml

from data_pipeline.base.records import read_records
from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint.manifest import read_manifest
from llmscale.checkpoint.model import load_model
from llmscale.cli import cli
from llmscale.config import parse_config
from llmscale.config.system import GenerateConfig
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.held_out import held_out_task
from llmscale.generate import Generator, Settings
from tests.ranks import run_ranks
from tests.tiny_run import losses
from tests.train.forked import run_many

LENGTH = 24
"""Tokens of a source, of which the tokenizer of bytes puts one at its end."""
GENERATE = 'evaluation.generate={"metrics": ["bleu", "f1"], "examples": null}'
BEST = ("evaluation.best=held-out/f1", "evaluation.patience=50")


def write_runs(folder: Path) -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 3))) for _ in range(12)]
    for name, count in (("pairs", 40), ("held", 12)):
        rows = [draw.choices(words, k=draw.randint(1, 14)) for _ in range(count)]
        lines = [json.dumps({"text": " ".join(row), "out": " ".join(row[:3])}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    source = {"kind": "jsonl", "field": "text", "target_field": "out"}
    sizes = {"layers": 2, "hidden_size": 32, "heads": 2, "ffn_size": 48, "max_positions": 48}
    config: dict[str, Any] = {
        "run": {"directory": "t5", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [{**source, "paths": ["pairs.jsonl"]}],
            "evaluation": [{**source, "paths": ["held.jsonl"]}],
            "order": "finite",
            "tokenizer": {"kind": "bytes"},
            "sequence_length": LENGTH,
            "workers": 0,
        },
        "model": {"family": "t5_v1_1", "encoder_layers": 2, "dropout": 0.1, **sizes},
        "objective": {"name": "seq2seq", "target_length": 12},
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "constant"},
        "train": {"steps": 6, "global_batch": 8, "micro_batch": 4},
        "evaluation": {"interval": 2},
        "checkpoint": {"interval": 2, "keep": 9},
        "logging": {"interval": 1},
    }
    (folder / "t5.yaml").write_text(yaml.safe_dump(config))
    config["run"]["directory"] = "llama"
    config["model"] = {"family": "llama", **sizes}
    config["objective"] |= {"concatenate": True, "pack": True}
    (folder / "llama.yaml").write_text(yaml.safe_dump(config))


def rows_of(run: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row["tasks"] for row in read_records(run / "metrics.jsonl") if "tasks" in row}


def lines_of(run: Path) -> dict[int, bytes]:
    """By step, what was written of the held-out sources."""
    return {int(path.parent.name[5:13]): path.read_bytes() for path in run.glob("evaluations/*held-out*/items.jsonl")}


def best_of(run: Path) -> dict[str, Any]:
    return read_manifest(max((run / "checkpoints").glob("step-*"))).progress["best"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    write_runs(folder)
    commands = [
        ("train", "t5.yaml", "run.directory=plain"),
        ("train", "t5.yaml", GENERATE, *BEST),
        ("eval", "t5/checkpoints/step-00000002", "--tasks", "held-out", "--output", "after"),
    ]
    for done in run_many(commands, folder):
        assert done.returncode == 0, done.stderr
    return folder


def test_they_change_no_loss_and_are_those_of_the_checkpoint(folder: Path) -> None:
    assert losses(folder / "t5") == losses(folder / "plain")
    written = lines_of(folder / "t5")
    assert list(rows_of(folder / "t5")) == sorted(written) == [2, 4, 6]
    after = {int(path.parent.name[5:13]): path.read_bytes() for path in folder.glob("after/*/items.jsonl")}
    assert after == {2: written[2]}


def test_sources_are_read_as_in_training_and_figures_are_sacrebleus(folder: Path) -> None:
    held = [json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()]
    [place] = (folder / "t5").glob("evaluations/step-00000006-held-out-*")
    records = load_artefact(place).records
    assert [record.references for record in records] == [[row["out"]] for row in held]
    cut = [len(row["text"]) > LENGTH - 1 for row in held]
    assert [record.flags == ["windowed"] for record in records] == cut
    assert len(set(cut)) == 2
    trained = load_model(folder / "t5")
    writer = Generator(trained.model, trained.tokenizer)
    expected = writer.generate([row["text"][: LENGTH - 1] for row in held], Settings(12, exact=True))
    assert [record.generated for record in records] == [[each.text] for each in expected]
    score = sacrebleu.corpus_bleu([record.generated[0] for record in records], [[row["out"] for row in held]]).score
    assert rows_of(folder / "t5")[6]["held-out/bleu"]["value"] == pytest.approx(score)
    assert score > 0


def test_the_best_step_is_that_of_the_figure(folder: Path) -> None:
    figures = {step: row["held-out/f1"]["value"] for step, row in rows_of(folder / "t5").items()}
    best = best_of(folder / "t5")
    assert best["metric"] == "held-out/f1"
    assert best["step"] == max(figures, key=lambda step: (figures[step], -step))
    assert best["value"] == figures[best["step"]]


def test_a_smaller_number_takes_some_of_a_larger_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = parse_config(yaml.safe_load((folder / "t5.yaml").read_text()))
    tokenizer = load_tokenizer(folder / "t5" / "tokenizer")
    all_of_them = [json.loads(line)["text"] for line in (folder / "held.jsonl").read_text().splitlines()]
    before: list[str] = []
    for most in (1, 4, 7, 12):
        task = held_out_task(config, GenerateConfig(metrics=["bleu"], examples=most), tokenizer)
        texts = [item.contexts[0] for item in task.items()]
        assert len(texts) == most
        assert set(before) <= set(texts)
        assert texts == [text for text in all_of_them if text in texts]
        before = texts


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (('evaluation.generate={"metrics": ["accuracy"]}',), "does not fit tasks of kind generate"),
        (('evaluation.generate={"metrics": ["bleu", "bleu"]}',), "twice"),
        ((GENERATE, "data.evaluation=[]"), "nothing is held out"),
        ((GENERATE, "evaluation.best=held-out/chrf"), "held-out/bleu"),
        ((GENERATE, "objective={name: denoising}"), "objective.name is denoising"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_step(overrides: tuple[str, ...], said: str, folder: Path) -> None:
    [done] = run_many([("train", "t5.yaml", *overrides, "run.directory=refused")], folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert not losses(folder / "refused")


LAYOUTS = {
    "t5": ["engine.zero_stage=2", "engine.zero_stage=3", "parallel.tensor=2"],
    "llama": ["engine.zero_stage=1", "parallel.pipeline=2", "parallel.context=2"],
}


def train_on_rank(folder: str, commands: list[list[str]]) -> None:
    """Train several times, one after the other."""
    os.chdir(folder)
    for arguments in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments, prog_name="llmscale", standalone_mode=False)
        assert ended.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYOUTS)
def test_layouts_write_the_same_bytes(family: str, folder: Path) -> None:
    common = ["train", f"{family}.yaml", GENERATE, "train.steps=4"]
    common.append("objective.target_length=13")  # an even number of positions
    [alone] = run_many([(*common, f"run.directory=alone_{family}")], folder)
    assert alone.returncode == 0, alone.stderr
    names = {f"{family}_{layout.replace('=', '_')}": layout for layout in LAYOUTS[family]}
    commands = [[*common, layout, f"run.directory={name}"] for name, layout in names.items()]
    run_ranks(2, train_on_rank, str(folder), commands)
    for name in names:
        assert lines_of(folder / name) == lines_of(folder / f"alone_{family}"), name


@pytest.mark.slow
def test_a_run_that_goes_on_writes_the_same_and_knows_its_best_step(folder: Path) -> None:
    parts = ("train", "t5.yaml", GENERATE, *BEST, "run.directory=parts")
    for done in run_many([(*parts, "train.steps=3"), parts], folder):
        assert done.returncode == 0, done.stderr
    whole, found = lines_of(folder / "t5"), lines_of(folder / "parts")
    assert {step: found[step] for step in whole} == whole
    assert best_of(folder / "parts") == best_of(folder / "t5")


@pytest.mark.slow
def test_a_fine_tuned_model_is_compared_with_its_base(folder: Path) -> None:
    tuned = ("run.directory=tuned", "train.init_from=t5", "finetune={train: all}", GENERATE)
    [done] = run_many([("train", "t5.yaml", *tuned)], folder)
    assert done.returncode == 0, done.stderr
    assert sorted(lines_of(folder / "tuned")) == [0, 2, 4, 6]
    assert lines_of(folder / "tuned")[0] == lines_of(folder / "t5")[6]
    summary = json.loads((folder / "tuned" / "summary.json").read_text())
    assert "held-out" in json.dumps(summary["tasks"])
    assert "held-out" in done.stdout
