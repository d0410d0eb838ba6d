"""Tasks of kind classify on a fine-tuned head: its probabilities are transformers' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.tasks import load_tasks
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.parallel.init import build

TEXTS = ["a fine film", "bad", "the story was a great one, and long " * 2, "sad story", "good good good", "x" * 14]


def write_classifier(folder: Path, family: str, pooling: str) -> Path:
    objective = {"name": "classification", "labels": ["bad", "good"], "pooling": pooling}
    return write_checkpoint(folder, family, objective, {"label": "stars"})


def write_checkpoint(folder: Path, family: str, objective: dict[str, Any], fields: dict[str, str]) -> Path:
    """A small model with large random weights and the head of an objective."""
    sizes = {"layers": 2, "hidden_size": 32, "heads": 4, "max_positions": 64, "init_std": 0.3}
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {
                "sources": [{"kind": "jsonl", "paths": ["a"], "fields": fields}],
                "tokenizer": {"kind": "bytes"},
                "sequence_length": 32,
            },
            "model": {"family": family, **sizes, **({"next_sentence": False} if family == "bert" else {})},
            "objective": objective,
        }
    )
    tokenizer = prepare_tokenizer(config.data, folder / "tokenizer", roles=config.objective.roles(32))
    files = {file.name: file.read_bytes() for file in (folder / "tokenizer").iterdir()}
    model = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=5)
    (folder / "model").mkdir()
    tensors = ((name, value.detach()) for name, value in model.named_parameters())
    write_whole(folder / "model", tensors, RunState(samples=0, config=config.model_dump(mode="json")), files)
    return folder / "model"


def write_task(folder: Path, labels: list[str]) -> str:
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "classify", "text": "{{ text }}", "labels": labels, "gold": "{{ label }}"}
    (folder / "stars.yaml").write_text(yaml.safe_dump({**task, "data": {"files": ["rows.jsonl"]}}))
    return str(folder / "stars.yaml")


@pytest.mark.parametrize(("family", "pooling"), [("bert", "first"), ("gpt2", "last")])
def test_probabilities_are_those_of_transformers(family: str, pooling: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    checkpoint = write_classifier(tmp_path, family, pooling)
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    (task,) = load_tasks([write_task(tmp_path, ["good", "bad"])]).tasks
    (prepared,) = prepare(placed, [task], Choices(output=tmp_path / "out"))
    run([prepared], lambda task, done, items: None)
    records = load_artefact(prepared.folder).records
    export_checkpoint(checkpoint, tmp_path / "exported")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    special = placed.tokenizer.special
    for text, record in zip(TEXTS, records, strict=True):
        ids = placed.tokenizer.encode(text)
        around = ([special["cls"]], [special["sep"]]) if family == "bert" else ([], [special["eos"]])
        room = 64 - sum(map(len, around))
        row = torch.tensor([[*around[0], *ids[:room], *around[1]]])
        with torch.no_grad():
            wanted = theirs(row, attention_mask=torch.ones_like(row)).logits[0].softmax(-1)
        # The task has the labels in the other order.
        assert record.probabilities == pytest.approx(wanted.flip(0).tolist(), abs=1e-5)
        assert record.flags == (["windowed"] if len(ids) > room else [])
    accuracy = np.mean([int(np.argmax(record.probabilities)) in record.gold for record in records])
    from llmscale.evaluate.results import figures_of

    assert figures_of(load_artefact(prepared.folder)).figures[0].value == pytest.approx(accuracy)


def test_other_labels_and_other_models_are_refused(tmp_path: Path) -> None:
    placed = place_whole(str(write_classifier(tmp_path, "bert", "first")), torch.device("cpu"), torch.float32)
    (task,) = load_tasks([write_task(tmp_path, ["good", "awful"])]).tasks
    with pytest.raises(UserError, match="awful"):
        prepare(placed, [task], Choices(output=tmp_path / "out"))
