"""The encoder of a T5 alone, for labels of words: from its checkpoint, beside transformers' class, there and back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from llmscale.checkpoint.reader import newest_intact
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.interface import Run
from tests.train.forked import run, run_many
from tests.train.runs import evaluations

pytestmark = pytest.mark.slow
LABELS = ["O", "B-PER"]
TUNED = ("train", "tags.yaml", "train.init_from=base", "model.architecture=encoder")


def write_runs(folder: Path) -> None:
    """Words of which those that begin with a capital letter are names; a T5 to begin from, and its fine-tuning."""
    draw = random.Random(0)
    with open(folder / "rows.jsonl", "w") as file:
        for _ in range(200):
            words = ["".join(draw.choices("abcdefg", k=3)) for _ in range(4)]
            names = [draw.random() < 0.4 for _ in words]
            shown = [word.title() if name else word for word, name in zip(words, names, strict=True)]
            tags = ["B-PER" if name else "O" for name in names]
            file.write(json.dumps({"text": " ".join(shown), "words": shown, "tags": tags}) + "\n")
    sizes = {"layers": 1, "encoder_layers": 2, "hidden_size": 32, "heads": 4, "ffn_size": 64, "max_positions": 64}
    base = {
        "run": {"directory": "base", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [{"kind": "jsonl", "paths": ["rows.jsonl"], "field": "text"}],
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 32,
        },
        "model": {"family": "t5", **sizes},
        "objective": {"name": "denoising"},
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "constant"},
        "train": {"steps": 3, "global_batch": 8, "micro_batch": 8},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    source = {"kind": "jsonl", "paths": ["rows.jsonl"], "field": "words", "join": " "}
    tags = {
        **{key: base[key] for key in ("optimizer", "schedule")},
        "run": {"directory": "tags", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [{**source, "fields": {"tokens": "words", "tags": "tags"}}],
            "sequence_length": 32,
            "holdout": 0.2,
        },
        "objective": {"name": "token_classification", "labels": LABELS, "special_tokens": "eos"},
        "train": {"steps": 60, "global_batch": 16, "micro_batch": 16},
        "evaluation": {"interval": 30},
    }
    (folder / "tags.yaml").write_text(yaml.safe_dump(tags))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_runs(folder)
    for done in run_many([("train", "base.yaml"), TUNED], cwd=folder):
        assert done.returncode == 0, done.stderr
    return folder


def test_an_encoder_decoder_is_told_how(folder: Path) -> None:
    done = run(*TUNED[:-1], "run.directory=whole", cwd=folder)
    assert done.returncode == 2
    assert "set model.architecture=encoder and objective.special_tokens=eos" in done.stderr
    done = run(*TUNED, "objective.special_tokens=cls", "run.directory=framed", cwd=folder)
    assert done.returncode == 2
    assert "base has a tokenizer without cls and sep" in done.stderr


def test_it_begins_from_the_encoder(folder: Path) -> None:
    done = run(*TUNED, "run.directory=begun", "optimizer.lr=0.0000000001", "train.steps=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    base, begun = (newest_intact(folder / name) for name in ("base", "begun"))
    own = [name for name in begun.names if not name.startswith("token_classification")]
    assert sum(name.startswith("blocks.1.") for name in own) > 0
    for name in own:
        whole = name if name == "embedding.weight" else f"encoder.{name}"
        torch.testing.assert_close(begun.full(name), base.full(whole), rtol=0, atol=1e-6)


def test_it_learns_and_transformers_says_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    last = evaluations(folder / "tags")[-1]
    assert last["accuracy"] > 0.9
    export_checkpoint(folder / "tags", tmp_path / "exported")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "exported").eval()
    assert type(theirs).__name__ == "T5ForTokenClassification"
    import_directory(tmp_path / "exported", tmp_path / "back")
    with Run(folder / "tags" / "config.yaml").loader() as loader:
        batch, _ = loader.take(32)
    labels = batch.labels["token_classification"]
    logits = theirs(input_ids=batch.inputs, attention_mask=batch.encoder_weights.long()).logits
    right = (logits.argmax(-1) == labels)[labels >= 0].float().mean()
    assert right > 0.9
    stored, back = newest_intact(folder / "tags"), newest_intact(tmp_path / "back")
    assert set(stored.names) == set(back.names)
    size = theirs.config.vocab_size  # rows behind it are padding
    assert all(torch.equal(stored.full(name)[:size], back.full(name)[:size]) for name in stored.names)


@pytest.mark.parametrize("section", ["{lora: {rank: 2, alpha: 4}}", "{train: head}", "{train: layers, layers: 1}"])
def test_parts_of_it(section: str, folder: Path) -> None:
    name = section.strip("{}").split(":")[1].strip(" {")
    done = run(*TUNED, f"run.directory={name}-{len(section)}", f"finetune={section}", "train.steps=2", cwd=folder)
    assert done.returncode == 0, done.stderr
