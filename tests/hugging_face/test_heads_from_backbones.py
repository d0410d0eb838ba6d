"""A head that a run puts onto an imported backbone is that of its family's class, and is exported as that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import RunConfig, identity, parse_config
from llmscale.config.identity import require_same_identity
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.layout.settings import require_possible
from llmscale.parallel.init import build, fill
from llmscale.slices.tensor_slice import TensorSlice
from llmscale.train.initial import start_from
from tests.hugging_face.references import BYTES, reference, save

LABELS = ["O", "B-PER", "I-PER"]
AUTO = {
    "classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}
OBJECTIVES: dict[tuple[str, str], dict[str, Any]] = {
    ("roberta", "classification"): {"labels": LABELS},
    ("roberta", "token_classification"): {"labels": LABELS},
    ("xlm_roberta", "span"): {},
    ("modernbert", "classification"): {"labels": LABELS, "pooling": "mean"},
    ("modernbert", "token_classification"): {"labels": LABELS},
    ("modernbert_biased", "span"): {},
    ("t5", "classification"): {"labels": ["stars"], "problem": "regression", "pooling": "decoder"},
    ("mt5", "span"): {"special_tokens": "decoder"},
    ("gpt2", "classification"): {"labels": LABELS, "problem": "multi_label", "pooling": "last"},
    ("olmo2", "classification"): {"labels": LABELS, "pooling": "last"},
    ("opt", "span"): {"special_tokens": "eos"},
    ("phi", "token_classification"): {"labels": LABELS, "special_tokens": "eos"},
    ("glm4", "classification"): {"labels": LABELS, "pooling": "last"},
    ("gemma", "classification"): {"labels": LABELS, "pooling": "last"},
    ("gemma3_text", "classification"): {"labels": LABELS, "pooling": "last"},
}


def tuned(folder: Path, objective: dict[str, Any]) -> RunConfig:
    """The config of a run from the checkpoint `ours`, which takes its model over."""
    raw = {
        "run": {"directory": str(folder / "run")},
        "data": {"sources": [{"paths": ["a"]}], "sequence_length": 16},
        "objective": objective,
        "train": {"init_from": str(folder / "ours")},
    }
    return parse_config(raw)


def started(folder: Path, config: RunConfig) -> None:
    """The checkpoint `tuned` with the weights that such a run starts from."""
    tokenizer = load_tokenizer(folder / "ours" / "tokenizer")
    model = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=0)
    weights = start_from(model, str(folder / "ours"), tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(parameter.view(-1), weights, name, TensorSlice.whole(parameter.shape))
    files = {file.name: file.read_bytes() for file in (folder / "ours" / "tokenizer").iterdir()}
    (folder / "tuned").mkdir()
    state = RunState(samples=0, config=config.model_dump(mode="json"), identity=identity(config))
    write_whole(folder / "tuned", ((name, p.detach()) for name, p in model.named_parameters()), state, files)


@pytest.mark.parametrize(("name", "head"), OBJECTIVES)
def test_the_head_of_the_class(name: str, head: str, tmp_path: Path) -> None:
    save(reference(name), tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    config = tuned(tmp_path, {"name": head, **OBJECTIVES[name, head]})
    require_possible(config)
    started(tmp_path, config)
    export_checkpoint(tmp_path / "tuned", tmp_path / "back", with_tokenizer=False)
    theirs, missing = AUTO[head].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(missing.values())
    # Of the language model's tensors it has those that transformers' class takes over itself.
    labels = theirs.config.num_labels
    expected, info = AUTO[head].from_pretrained(tmp_path / "hf", num_labels=labels, output_loading_info=True)
    assert type(theirs) is type(expected)
    for key, tensor in expected.state_dict().items():
        if key not in info["missing_keys"]:
            assert torch.equal(theirs.state_dict()[key], tensor), key
    stored = load_file(tmp_path / "back" / "model.safetensors")
    assert info["missing_keys"] <= set(stored)
    # It reads back as the same head.
    import_directory(tmp_path / "back", tmp_path / "again", tokenizer=BYTES)
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())["config"]["model"]
    assert again["head"] == config.model.model_dump(mode="json")["head"]


def test_a_run_of_an_earlier_release_keeps_its_head(tmp_path: Path) -> None:
    """ModernBERT had a pooler as BERT has, and configs that say so go on with it."""
    save(reference("modernbert"), tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    objective = {"name": "classification", "labels": LABELS}
    before = tuned(tmp_path, {**objective, "transform": False}).model_dump(mode="json")
    assert before["model"]["head"].pop("transform") is False
    del before["objective"]["transform"]
    again = parse_config(before)
    assert again.model.head is not None
    assert again.model.head.pooler
    recorded = dict(identity(again))
    assert "model.head.transform" not in recorded
    require_same_identity(tuned(tmp_path, {**objective, "transform": False}), recorded, "runs/earlier")
    with pytest.raises(UserError, match=r"runs/earlier was trained with model\.head\.pooler = True"):
        require_same_identity(tuned(tmp_path, objective), recorded, "runs/earlier")


@pytest.mark.parametrize(
    ("name", "objective", "words"),
    [
        ("t5", {"name": "classification", "labels": LABELS}, "set objective.pooling=decoder"),
        ("roberta", {"name": "classification", "labels": LABELS, "pooling": "decoder"}, "set objective.pooling=first"),
        ("t5", {"name": "span"}, "set objective.special_tokens=decoder"),
        ("t5", {"name": "token_classification", "labels": LABELS}, "encoder_decoder"),
    ],
)
def test_what_cannot_be(name: str, objective: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(reference(name), tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    with pytest.raises(UserError, match=words):
        require_possible(tuned(tmp_path, objective))


def test_a_class_of_the_encoder_alone_is_refused(tmp_path: Path) -> None:
    folder = save(reference("t5"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["T5EncoderModel"]}))
    with pytest.raises(UserError, match="architectures is T5EncoderModel, but llmscale reads"):
        import_directory(folder, tmp_path / "ours", tokenizer=BYTES)
