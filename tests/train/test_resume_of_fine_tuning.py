"""Fine-tuning that is killed at random points goes on to the bit: losses, ledger, evaluations, best metric and
patience, of classification, seq2seq and preferences, whose reference is computed once."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.records import read_every_record
from tests.train.forked import Command, run
from tests.train.runs import evaluations, ledger, metrics

STEPS = 60
WORDS = ("good", "fine", "bad", "poor", "film", "story", "\u597d", "\u574f")
SMALL = {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 64}
KILLS = 5


def source(name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "jsonl", "paths": ["rows.jsonl"], "field": name, **fields}


CASES: dict[str, dict[str, Any]] = {
    "classification": {
        "data": {"sources": [source("prompt", fields={"label": "label"})]},
        "model": {"family": "bert", "next_sentence": False, **SMALL},
        "objective": {"name": "classification", "labels": ["a", "b"], "dropout": 0.1},
        "evaluation": {"best": "accuracy"},
    },
    "seq2seq": {
        "data": {"sources": [source("prompt", target_field="chosen")]},
        "model": {"family": "t5", **SMALL, "dropout": 0.1},
        "objective": {"name": "seq2seq", "target_length": 24},
        "evaluation": {"best": "loss"},
    },
    "preference": {
        "data": {"sources": [source("prompt", fields={"chosen": "chosen", "rejected": "rejected"})]},
        "model": {"family": "gpt2", **SMALL},
        "objective": {"name": "preference"},
        "train": {"init_from": "base"},
        "evaluation": {"best": "margin"},
    },
}


def write_run(folder: Path, name: str) -> None:
    draw = random.Random(1)
    with open(folder / "rows.jsonl", "w") as file:
        for _ in range(120):
            prompt, good, bad = (" ".join(draw.choices(WORDS, k=2)) for _ in range(3))
            row = {"prompt": prompt, "chosen": f"{good} yes", "rejected": f"{bad} no", "label": draw.choice("ab")}
            file.write(json.dumps(row) + "\n")
    case = CASES[name]
    data = {
        "tokenizer": {"kind": "bytes"}, "sequence_length": 40, "order": "finite", "workers": 0, "holdout": 0.2,
        **case["data"],
    }  # fmt: skip
    config = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": data,
        "model": case["model"],
        "objective": case["objective"],
        "optimizer": {"lr": 0.01},
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 4, **case.get("train", {})},
        "evaluation": {"interval": 3, "batch": 8, "patience": 40, **case["evaluation"]},
        "checkpoint": {"interval": 4},
        "logging": {"interval": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if "train" in case:
        base = {**config, "run": {**config["run"], "directory": "base"}, "objective": {"name": "causal"}}
        base |= {"train": {"steps": 1, "global_batch": 8}, "evaluation": {}, "checkpoint": {}}
        base["data"] = {**data, "sources": [source("prompt")]}
        (folder / "base.yaml").write_text(yaml.safe_dump(base))
        done = run("train", "base.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def best(run: Path) -> dict[str, Any]:
    newest = max((run / "checkpoints").glob("step-*"))
    return json.loads((newest / "manifest.json").read_text())["progress"]["best"]  # type: ignore[no-any-return]


def kill_somewhere(folder: Path, draw: random.Random) -> None:
    """Start, and end it with SIGKILL at a random instant: while it starts, or some steps later."""
    run = folder / "run"
    begun = lines(run / "ledger.jsonl")
    process = Command("train", "config.yaml", cwd=folder)
    wanted = begun + draw.randint(0, STEPS // KILLS)
    deadline = time.monotonic() + 120
    while lines(run / "ledger.jsonl") < wanted and process.process.is_alive() and time.monotonic() < deadline:
        # Also while the reference's log-probabilities are written.
        if wanted == begun and any((run / "cache").glob("reference-*")):
            break
        time.sleep(0.002)
    time.sleep(draw.random() * 0.05)
    if process.process.is_alive():
        process.signal(signal.SIGKILL)
    process.finish()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_at_five_random_points(name: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        write_run(folder, name)
    done = run("train", "config.yaml", cwd=whole)
    assert done.returncode == 0, done.stderr
    draw = random.Random(f"killed {name}")
    for _ in range(KILLS):
        kill_somewhere(killed, draw)
    done = run("train", "config.yaml", cwd=killed)
    assert done.returncode == 0, done.stderr
    resumed, reference = killed / "run", whole / "run"
    assert len(metrics(reference)) <= STEPS
    assert metrics(resumed) == metrics(reference)
    assert ledger(resumed) == ledger(reference)
    assert evaluations(resumed) == evaluations(reference)
    assert best(resumed) == best(reference)
    for path in (reference / "cache").glob("reference-*.jsonl"):
        assert values(resumed / "cache" / path.name) == values(path)


def values(path: Path) -> dict[str, Any]:
    return {row["sample"]: row["values"] for row in read_every_record(path)}
