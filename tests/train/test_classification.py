"""`llmscale train` with objective classification: from scratch and from a pretrained model, its figures, its files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.train.forked import run, run_many
from tests.train.runs import evaluations

SIZES = {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 48}
GOOD, BAD, FILL = ("good", "fine", "great"), ("bad", "poor", "sad"), ("the", "film", "was", "a", "story")


def write_run(folder: Path) -> None:
    """Sentences whose one telling word gives the label, as JSON lines, and a config of a BERT."""
    draw = random.Random(0)
    with open(folder / "rows.jsonl", "w") as file:
        for _ in range(240):
            good = draw.random() < 0.5
            words = [*draw.choices(FILL, k=2), draw.choice(GOOD if good else BAD)]
            draw.shuffle(words)
            file.write(json.dumps({"sentence": " ".join(words), "stars": int(good)}) + "\n")
    source = {"kind": "jsonl", "paths": ["rows.jsonl"], "field": "sentence", "fields": {"label": "stars"}}
    config: dict[str, Any] = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [source],
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 24,
            "lanes": 4,
            "span_bytes": 2000,
            "shuffle_buffer": 16,
            "holdout": 0.2,
        },
        "model": {"family": "bert", **SIZES},
        "objective": {"name": "classification", "labels": ["0", "1"]},
        "optimizer": {"lr": 0.003},
        "schedule": {"name": "constant", "warmup_steps": 2},
        "train": {"steps": 120, "global_batch": 16, "micro_batch": 16},
        "evaluation": {"interval": 40},
        "logging": {"interval": 10},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    write_run(folder)
    done = run("train", "config.yaml", "model.next_sentence=false", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_learns_and_says_how_well(folder: Path) -> None:
    first, *_, last = evaluations(folder / "run")
    assert {"loss", "accuracy", "samples", "documents"} <= last.keys()
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > 0.8
    done = run("eval", "run", "--data", "rows.jsonl", "--json", cwd=folder)
    figures = json.loads(done.stdout)
    assert figures["accuracy"] > 0.8
    assert figures["samples"] == 240


@pytest.mark.slow
def test_an_encoder_decoder_learns_it(folder: Path) -> None:
    """The decoder reads the text once more, and transformers' class gives the same labels."""
    changes = ("model.family=t5", "model.dropout=0", "objective.pooling=decoder", "train.steps=160")
    done = run("train", "config.yaml", *changes, "run.directory=t5", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert evaluations(folder / "t5")[-1]["accuracy"] > 0.95
    (said,) = export_checkpoint(folder / "t5", folder / "t5-hf")
    assert "T5ForSequenceClassification" in said
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "t5-hf").eval()
    eos = theirs.config.eos_token_id
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()[:40]]
    for row in rows:
        ids = load_model(folder / "t5").tokenizer.encode(row["sentence"])
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([[*ids, eos]])).logits
        assert int(logits.argmax()) == row["stars"], row


def test_it_starts_from_a_pretrained_model(folder: Path) -> None:
    """The body and BERT's pooler are the checkpoint's, the projection is drawn."""
    pretrained = ("objective={name: masked, next_sentence: true}", "train.steps=2", "run.directory=pretrained")
    done = run("train", "config.yaml", *pretrained, cwd=folder)
    assert done.returncode == 0, done.stderr
    still = ("optimizer.lr=1e-12", "train.steps=2", "model.next_sentence=false", "run.directory=tuned")
    # The tokenizer has a mask, of which classification alone would have no need.
    done = run("train", "config.yaml", "train.init_from=pretrained", *still, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "classification.classifier.weight is drawn" in done.stderr
    assert "classification.pooler.weight is that of next_sentence.pooler.weight" in done.stderr
    before, after = (dict(load_model(folder / name).model.named_parameters()) for name in ("pretrained", "tuned"))
    for name, parameter in after.items():
        home = name.replace("classification.pooler", "next_sentence.pooler")
        if "classifier" not in name:
            torch.testing.assert_close(parameter, before[home], rtol=0, atol=1e-6)
    assert after["classification.classifier.weight"].std() > 0.001


def test_a_head_without_a_class_of_transformers_comes_back(folder: Path) -> None:
    mean = ("objective.pooling=mean", "objective.labels=['0', '1']", "train.steps=2", "run.directory=mean")
    done = run("train", "config.yaml", "model.next_sentence=false", *mean, cwd=folder)
    assert done.returncode == 0, done.stderr
    [said] = export_checkpoint(folder / "mean", folder / "hf")
    assert "transformers has no class for this model" in said
    import_directory(folder / "hf", folder / "back")
    first, again = load_model(folder / "mean"), load_model(folder / "back")
    assert again.config.objective == first.config.objective
    weights = dict(again.model.named_parameters())
    assert torch.equal(weights["classification.classifier.weight"], first.model.classification.classifier.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("objective.labels=['0', '2']",), "rows.jsonl:"),
        (("objective.labels=['0', '0']",), "labels has '0' 2 times; name each label once"),
        (
            ("model.family=gpt2", "model.next_sentence=false"),
            "objective.pooling is first, but model.architecture is decoder, whose first token sees no other; set"
            " objective.pooling=last",
        ),
        (
            ("model.family=t5",),
            "objective.pooling is first, but model.architecture is encoder_decoder; set objective.pooling=decoder",
        ),
        (("model.head={name: classification, outputs: 5}",), "leave it out"),
        (("logging.sample_prompts=[a]",), "model.architecture is encoder, which continues no text"),
    ],
)
def test_what_cannot_be(changes: tuple[str, ...], words: str, folder: Path) -> None:
    done = run("train", "config.yaml", "run.directory=never", "model.next_sentence=false", *changes, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_best_step_is_that_of_the_highest_accuracy(folder: Path) -> None:
    best = ("evaluation.best=accuracy", "run.directory=best", "model.next_sentence=false", "train.steps=80")
    done = run("train", "config.yaml", *best, cwd=folder)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "best/checkpoints/step-00000080/manifest.json").read_text())
    highest = max(row["accuracy"] for row in evaluations(folder / "best"))
    best_step = manifest["progress"]["best"]
    assert (best_step["metric"], best_step["value"]) == ("accuracy", highest)


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_labels_of_the_held_out_texts_are_among_those_trained_on(problem: str, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    good = [row for row in rows if row["stars"]]
    if problem == "multi_label":
        rows, good = ([{**row, "stars": [str(row["stars"]), "2"]} for row in some] for some in (rows, good))
    for name, some in (("good", good), ("all", [*good, *rows])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    source = "{{kind: jsonl, paths: [{}.jsonl], field: sentence, fields: {{label: stars}}}}".format
    options = (
        f"objective={{name: classification, problem: {problem}, labels: ['0', '1', '2']}}",
        "data.order=finite", "data.holdout=0", f"data.evaluation=[{source('all')}]", "model.next_sentence=false",
        "train.steps=1", "evaluation.interval=0", "schedule.warmup_steps=0",
    )  # fmt: skip
    refused, done = run_many(
        [
            ("train", "config.yaml", *options, f"data.sources=[{source(name)}]", f"run.directory={name}-{problem}")
            for name in ("good", "all")
        ],
        cwd=folder,
    )
    assert refused.returncode == 2, refused.stderr
    told = refused.stderr.splitlines()[-1]
    for part in (f"{len(rows) - len(good)} of {len(rows) + len(good)}", "label '0'", "data.sources", "held out"):
        assert part in told
    assert ("(they have '1')" if problem == "single_label" else "(they have '1', '2')") in told
    assert done.returncode == 0, done.stderr
