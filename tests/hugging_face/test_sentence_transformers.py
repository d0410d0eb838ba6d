"""Models that give vectors, in the layout of sentence-transformers: what it, or transformers with the pooling that the
layout's files state, makes of texts is what ours makes of them, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.model import load_model
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.embeddings.embedder import Embedder
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.parallel.init import build
from tests.hugging_face.test_pairs import ENCODER, write_roberta

TEXTS = ["a", "two words", "  spaces ", "\u4f60\u597d, \u4e16\u754c", "", "x" * 60, "a longer text than others " * 3]
"""The last ones are longer than the context."""
SIZES = {"layers": 2, "hidden_size": 32, "heads": 4, "max_positions": 48, "init_std": 0.3}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bert": ({"family": "bert", "next_sentence": False}, {"pooling": "first"}, "BertModel"),
    "bert_mean": ({"family": "bert", "next_sentence": False}, {"normalize": False}, "BertModel"),
    "modernbert": ({"family": "modernbert"}, {"pooling": "mean"}, "ModernBertModel"),
    "gpt2": ({"family": "gpt2"}, {"pooling": "last"}, "GPT2Model"),
    "llama": ({"family": "llama", "kv_heads": 2}, {"pooling": "mean", "normalize": False}, "LlamaModel"),
    "qwen3": ({"family": "qwen3", "kv_heads": 2}, {"pooling": "last"}, "Qwen3Model"),
}
"""Model and objective section, and the class that it is."""


def write_checkpoint(folder: Path, name: str) -> Path:
    model, objective, _ = CASES[name]
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {"sources": [{"paths": ["a"]}], "tokenizer": {"kind": "bytes"}, "sequence_length": 32},
            "model": {**SIZES, **model},
            "objective": {"name": "contrastive", **objective},
        }
    )
    kept = folder.with_name(f"{folder.name}-tokenizer")
    roles = dict.fromkeys((*config.objective.roles(32), *(("cls", "sep") if "bert" in name else ())))
    tokenizer = prepare_tokenizer(config.data, kept, roles=tuple(roles))
    files = {file.name: file.read_bytes() for file in kept.iterdir()}
    built = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=3)
    folder.mkdir(parents=True)
    tensors = ((key, value.detach()) for key, value in built.named_parameters())
    write_whole(folder, tensors, RunState(samples=0, config=config.model_dump(mode="json")), files)
    return folder


def ours(folder: Path) -> np.ndarray:
    trained = load_model(folder)
    return Embedder(trained.model, trained.tokenizer).embed(TEXTS)


def theirs(folder: Path) -> np.ndarray:
    """By transformers, with the pooling and norm that the files state."""
    modules = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    most = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
        with torch.no_grad():
            hidden = model(**given).last_hidden_state[0]
        assert hidden.shape[1] == pooling["word_embedding_dimension"]
        [mode] = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
        vector = {
            "pooling_mode_cls_token": hidden[0],
            "pooling_mode_mean_tokens": hidden.mean(0),
            "pooling_mode_lasttoken": hidden[-1],
        }[mode]
        found.append(vector / vector.norm() if "Normalize" in modules else vector)
    return torch.stack(found).numpy()


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_the_same_and_come_back(name: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "made", name)
    export_checkpoint(checkpoint, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["architectures"] == [CASES[name][2]]
    expected = ours(checkpoint)
    assert np.abs(theirs(tmp_path / "exported") - expected).max() < 1e-5
    import_directory(tmp_path / "exported", tmp_path / "back")
    back, before = load_model(tmp_path / "back").config, load_model(checkpoint).config
    assert back.model.head == before.model.head
    assert back.objective.name == "contrastive"
    assert np.array_equal(ours(tmp_path / "back"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama", "qwen3"])
def test_sentence_transformers_gives_them(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    checkpoint = write_checkpoint(tmp_path / "made", name)
    export_checkpoint(checkpoint, tmp_path / "exported")
    model = library.SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    assert np.abs(model.encode(TEXTS) - ours(checkpoint)).max() < 1e-5
    # As it writes the same model itself.
    model.save(str(tmp_path / "saved"))
    import_directory(tmp_path / "saved", tmp_path / "back")
    assert np.abs(ours(tmp_path / "back") - ours(checkpoint)).max() < 1e-6


def folder_of_theirs(folder: Path, modules: list[str], pooling: dict[str, Any]) -> None:
    """A BERT with a pooler of no use, as transformers writes it, and the files of a pooling."""
    checkpoint = write_checkpoint(folder.with_name("made"), "bert_mean")
    export_checkpoint(checkpoint, folder)
    config = transformers.BertConfig.from_pretrained(folder)
    torch.manual_seed(4)
    transformers.BertModel(config).save_pretrained(folder)
    listed = [
        {"idx": number, "name": str(number), "path": f"{number}_{kind}" if number else "", "type": f"a.models.{kind}"}
        for number, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_a_folder_of_theirs(tmp_path: Path) -> None:
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    folder_of_theirs(tmp_path / "theirs", ["Transformer", "Pooling", "Normalize"], flags)
    said = import_directory(tmp_path / "theirs", tmp_path / "ours")
    assert any("pooler.dense" in line for line in said)
    assert np.abs(theirs(tmp_path / "theirs") - ours(tmp_path / "ours")).max() < 1e-5
    # The form of later versions.
    (tmp_path / "theirs" / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "cls"}')
    import_directory(tmp_path / "theirs", tmp_path / "first")
    head = load_model(tmp_path / "first").config.model.head
    assert head is not None
    assert (head.pooling, head.normalize) == ("first", True)
    # A head that is asked for is drawn, as for any model without one.
    import_directory(tmp_path / "theirs", tmp_path / "drawn", new_head=True)
    assert load_model(tmp_path / "drawn").config.objective.name == "masked"


def test_a_roberta_of_theirs(tmp_path: Path) -> None:
    """Whose positions begin behind the padding token's."""
    folder_of_theirs(tmp_path / "files", ["Transformer", "Pooling", "Normalize"], {"pooling_mode_cls_token": True})
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_roberta(folder, saved=True)
    sizes = {"vocab_size": 600, "max_position_embeddings": 50, "type_vocab_size": 1}
    torch.manual_seed(4)
    config = transformers.RobertaConfig(**sizes, **ENCODER, initializer_range=0.3)
    transformers.RobertaModel(config).save_pretrained(folder)
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling"):
        (tmp_path / "files" / name).rename(folder / name)
    pooling = {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    import_directory(folder, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "exported")
    expected = ours(tmp_path / "ours")
    for place in (folder, tmp_path / "exported"):
        assert np.abs(theirs(place) - expected).max() < 1e-5


def test_what_is_not_carried_over_is_said(tmp_path: Path) -> None:
    folder_of_theirs(tmp_path / "theirs", ["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"})
    with pytest.raises(UserError, match="--new-head"):
        import_directory(tmp_path / "theirs", tmp_path / "no")
    said = import_directory(tmp_path / "theirs", tmp_path / "drawn", new_head=True)
    assert not any("Traceback" in line for line in said)
    (tmp_path / "theirs" / "modules.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="no list of modules"):
        import_directory(tmp_path / "theirs", tmp_path / "no")
