"""The shipped configs of embeddings in miniature, each after that of its encoder, on small data of the form that they
name; and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.finetune.test_configs import CONFIGS, write_data
from tests.train.forked import run
from tests.train.runs import evaluations

SMALL = (
    "run.device=cpu", "run.threads=1", "data.workers=0", "data.sequence_length=64", "train.micro_batch=4",
    "model.layers=2", "model.hidden_size=32", "model.heads=2", "model.ffn_size=48", "model.max_positions=64",
    "train.global_batch=8", "evaluation={interval: 4, batch: 8}", "logging.interval=1",
)  # fmt: skip
ENCODER = (
    "data.tokenizer.train.vocab_size=440", "data.tokenizer.train.model=bpe", "data.lanes=2", "data.span_bytes=1000",
    "data.tokenizer.train.character_coverage=1.0", "data.shuffle_buffer=8", "data.holdout=0.1",
    "schedule={name: constant}", "train.steps=6",
)  # fmt: skip
PAIRS = ("schedule.warmup_steps=1", "train.epochs=2")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_encoder_its_embeddings_and_topics(language: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    for name, changes in ((f"encoder_{language}", ENCODER), (f"embeddings_{language}", PAIRS)):
        done = run("train", CONFIGS / f"{name}.yaml", *SMALL, *changes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs/finetune" / f"embeddings_{language}"
    assert {"accuracy", "mean_reciprocal_rank"} <= evaluations(directory)[-1].keys()
    lines = [json.dumps({"text": f"text {number} 春花" * (1 + number % 3)}) for number in range(30)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    given = ("--input", "t.jsonl", "--device", "cpu")
    done = run("embed", directory, *given, "--output", "x.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "x.npy").shape == (30, 32)
    done = run("topics", directory, *given, "--topics", 3, "--output", "topics", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "topics/index.html").exists()
    # The head has nothing to train.
    alone = ("finetune.train=head", f"run.directory={directory}-head")
    done = run("train", CONFIGS / f"embeddings_{language}.yaml", *SMALL, *PAIRS, *alone, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
