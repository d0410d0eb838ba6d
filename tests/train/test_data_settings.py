"""Whole runs on mixed sources, by epochs, with a growing batch, on bad records, and for each objective of a decoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.records import read_records
from tests.data_pipeline.source_writers import write
from tests.tiny_run import write_tiny_run
from tests.train.forked import Finished, run
from tests.train.runs import ledger, metrics

TEXTS = [f"question {i}: what follows {i}? it is {i + 1}, and then {i + 2}." for i in range(240)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_run(tmp_path)
    return tmp_path


def configure(folder: Path, **sections: dict[str, Any]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for section, settings in sections.items():
        config[section] = {**config.get(section, {}), **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def train(folder: Path, *overrides: str) -> Finished:
    finished = run("train", "config.yaml", *overrides, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return finished


def test_shares_of_mixed_sources_are_reported(folder: Path) -> None:
    sources = [
        {"paths": ["text-[0-5].txt"], "document": "line", "label": "many", "weight": 3},
        {"paths": ["text-[67].txt"], "document": "line", "label": "few", "weight": 1},
    ]
    stages = [{"from_tokens": 1024 * 32, "weights": {"few": 1}}]
    configure(folder, data={"sources": sources, "mixture": {"stages": stages}})
    train(folder, "train.global_batch=256", "train.micro_batch=64", "train.steps=5")
    rows = [row["sources"] for row in read_records(folder / "run/metrics.jsonl") if "loss" in row]
    assert rows[3] == {"many": 768, "few": 256}
    assert rows[4] == {"many": 768, "few": 512}


def test_an_epoch_counts_every_token_once(folder: Path) -> None:
    source = write("jsonl", folder / "texts", TEXTS)
    configure(folder, data={"sources": [source], "order": "finite"})
    train(folder, "train.epochs=2", "train.global_batch=32", "checkpoint.interval=5")
    tokens = sum(len(text) + 1 for text in TEXTS)
    windows = -(-(tokens - 1) // 32)
    rows = [row for row in read_records(folder / "run/metrics.jsonl") if "loss" in row]
    assert rows[-1]["tokens"] == 2 * (tokens - 1)
    assert rows[-1]["step"] == -(-2 * windows // 32)
    last = rows[-1]["step"]
    shown = run("data", "ledger", "run", "--step", last, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(f"step {last}, sample") == 2 * windows - 32 * (last - 1)
    again = run("train", "config.yaml", "train.epochs=2", "train.global_batch=32", cwd=folder)
    assert again.returncode == 0
    assert f"all {rows[-1]['step']} steps are done" in again.stderr


def test_epochs_of_a_stream_are_refused(folder: Path) -> None:
    finished = run("train", "config.yaml", "train.epochs=2", cwd=folder)
    assert finished.returncode == 2
    assert "set data.order=finite" in finished.stderr


def write_novel(folder: Path) -> None:
    """One text in one file, which cannot be cut, and as many lanes as there are by default."""
    (folder / "novel.txt").write_text("\n".join(TEXTS))
    configure(folder, data={"sources": [{"paths": ["novel.txt"]}], "lanes": 960})


def test_a_single_text_needs_no_settings(folder: Path) -> None:
    write_novel(folder)
    finished = train(folder, "train.steps=6")
    assert finished.stderr.count("too little text for 960 lanes (data.lanes)") == 1
    shown = run("data", "ledger", "run", "--step", 6, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    # An epoch has each window of the one document once.
    places = [line.split(":")[1] for line in shown.stdout.splitlines() if "novel.txt" in line]
    assert len(set(places)) == 8


@pytest.mark.slow
def test_a_single_text_is_the_same_on_two_ranks_and_as_a_finite_set(folder: Path) -> None:
    write_novel(folder)
    train(folder, "train.steps=6")
    train(folder, "train.steps=6", "run.directory=said", "data.order=finite")
    assert metrics(folder / "said") == metrics(folder / "run")
    config = ["config.yaml", "train.steps=6", "run.directory=two"]
    ranks = run("launch", "local", "--nproc", "2", *config, cwd=folder)
    assert ranks.returncode == 0, ranks.stderr
    assert ledger(folder / "two") == ledger(folder / "run")


def test_a_growing_batch_reads_the_same_samples_in_order_and_resumes(folder: Path) -> None:
    ramp = ["train.batch_ramp={start: 4, increment: 2, samples: 40}", "train.global_batch=12", "train.steps=9"]
    train(folder, *ramp)
    sizes = [last - first + 1 for _, first, last, _ in ledger(folder / "run")]
    # Four increments, one after each ten samples.
    assert sizes == [4, 4, 4, 6, 6, 8, 10, 12, 12]
    assert [first for _, first, _, _ in ledger(folder / "run")] == [sum(sizes[:i]) for i in range(9)]
    for steps in (4, 9):
        # Stopped by a signal, a run would go on as this one does from its checkpoint.
        train(folder, *ramp[:2], f"train.steps={steps}", "run.directory=parts", "schedule.name=constant")
    train(folder, *ramp, "run.directory=whole", "schedule.name=constant")
    assert metrics(folder / "parts") == metrics(folder / "whole")
    assert ledger(folder / "parts") == ledger(folder / "whole")


@pytest.mark.parametrize("order", ["stream", pytest.param("finite", marks=pytest.mark.slow)])
def test_bad_records_are_listed_once_and_warned_of(folder: Path, order: str) -> None:
    source = write("jsonl", folder / "texts", TEXTS)
    path = folder / "texts/000.jsonl"
    lines = path.read_text().splitlines()
    lines[5], lines[50] = '{"text": "cut', '{"body": "no text"}'
    path.write_text("\n".join(lines))
    configure(folder, data={"sources": [source], "bad_record_warning": 0.001, "order": order})
    finished = train(folder, "train.steps=150")
    rows = read_records(folder / "run/quarantine/rank-00000.jsonl")
    assert sorted((row["path"], row["line"]) for row in rows) == [(str(path), 6), (str(path), 51)]
    assert finished.stderr.count("bad records among") == 1
    failed = run(
        "train", "config.yaml", "data.on_bad_record=fail", "run.directory=strict", "train.steps=150", cwd=folder
    )
    assert failed.returncode == 2
    assert f"{path}:" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("order", ["stream", "finite"])
def test_what_is_left_out_is_counted_in_the_metrics(folder: Path, order: str) -> None:
    source = write("jsonl", folder / "texts", [*TEXTS, "short", "", "too"])
    configure(folder, data={"sources": [source], "order": order, "cleaning": [{"step": "length", "min": 10}]})
    train(folder, "train.steps=60")
    last = read_records(folder / "run/metrics.jsonl")[-1]
    counts = last["dropped"]
    # A stream reads documents again in each epoch.
    passes = counts["empty"]
    assert passes == 1 or (order == "stream" and passes > 1)
    assert counts.keys() == {"empty", "length: too short"}
    assert abs(counts["length: too short"] - 2 * passes) <= (order == "stream") * 2


def test_what_is_left_out_of_an_evaluation_is_said(folder: Path) -> None:
    (folder / "held.jsonl").write_text('{"text": "some text to evaluate on"}\nnot JSON\n{"text": 5}\n' * 3)
    configure(folder, data={"evaluation": [{"kind": "jsonl", "paths": ["held.jsonl"]}]})
    said = "dropped or repaired: 3 no text in the field, 3 not JSON"
    assert f"reading the documents to evaluate on {said}\n" in train(folder, "train.steps=1").stderr
    command = ("eval", "run", "--data", "held.jsonl")
    evaluated = run(*command, cwd=folder)
    assert f"(3 documents, 72 bytes, 75 tokens; {said})" in evaluated.stdout
    assert evaluated.stderr == (
        "warning: 6 bad records among 9 (66.7%; data.bad_record_warning is 1.0%): 3 no text in the field, 3 not JSON"
        " (held.jsonl: 3 no text in the field, 3 not JSON)\n"
    )
    figures = json.loads(run(*command, "--json", cwd=folder).stdout)
    assert (figures["documents"], figures["dropped"]) == (3, {"no text in the field": 3, "not JSON": 3})


def test_a_bad_record_in_a_file_whose_name_is_not_utf8_is_listed(folder: Path) -> None:
    path = folder / os.fsdecode(b"a\xff.jsonl")
    path.write_text("".join('{"text": "some text of a document"}\nnot JSON\n' for _ in range(400)))
    configure(folder, data={"sources": [{"kind": "jsonl", "paths": ["a*.jsonl"]}]})
    train(folder, "train.steps=2")
    rows = read_records(folder / "run/quarantine/rank-00000.jsonl")
    assert {(row["path"], row["reason"]) for row in rows} == {(path.name, "not JSON")}
    failed = run("train", "config.yaml", "data.on_bad_record=fail", "run.directory=strict", cwd=folder)
    assert failed.returncode == 2
    assert "not JSON" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert path.name in json.loads((folder / "strict/outcome.json").read_text("utf-8"))["reason"]


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "causal", "separate_documents": True},
        {"name": "causal", "fim_rate": 0.5},
        {"name": "prefix"},
        {"name": "seq2seq", "concatenate": True, "target_length": 24},
    ],
    ids=["separate", "fim", "prefix", "pairs"],
)
def test_a_decoder_learns_by_each_of_its_objectives(folder: Path, objective: dict[str, Any]) -> None:
    source = write("jsonl", folder / "texts", TEXTS, pairs=True)
    configure(folder, data={"sources": [source]}, objective=objective)
    train(folder, "train.steps=40", "optimizer.lr=0.01")
    losses = [loss for _, loss, _ in metrics(folder / "run")]
    assert losses[-1] < 0.8 * losses[0]
    shown = run("data", "ledger", "run", "--step", "3", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "texts/00" in shown.stdout


@pytest.mark.parametrize("name", ["masked", "denoising", "seq2seq"])
def test_objectives_for_an_encoder_are_refused(folder: Path, name: str) -> None:
    finished = run("train", "config.yaml", f"objective.name={name}", cwd=folder)
    assert finished.returncode == 2
    assert "but model.architecture is decoder" in finished.stderr


def test_prepared_tokens_train_as_the_text_does_and_tell_their_tokenizer(folder: Path) -> None:
    source = write("jsonl", folder / "texts", TEXTS)
    configure(folder, data={"sources": [source]})
    prepared = run("data", "prepare", "config.yaml", "out", cwd=folder)
    assert prepared.returncode == 0, prepared.stderr
    configure(folder, data={"sources": [{"kind": "tokens", "paths": ["out/train"]}]})
    train(folder, "train.epochs=1")
    text = {"sources": [source], "order": "finite"}
    configure(folder, data=text)
    train(folder, "train.epochs=1", "run.directory=from-text")
    assert metrics(folder / "run") == metrics(folder / "from-text")
    configure(folder, data={"sources": [{"kind": "tokens", "paths": ["out/train"]}]})
    meta = json.loads((folder / "out/meta.json").read_text())
    assert meta["tokenizer"]
    other = run("train", "config.yaml", "data.tokenizer={train: {vocab_size: 400}}", "run.directory=x", cwd=folder)
    assert other.returncode == 2
