"""Tokenizers of Hugging Face directories, both ways: transformers and we split text into the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.training import train_sentencepiece
from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.data_pipeline.tokenizer.vocabularies import BERT_TOKENS, TEXT, bert_file, gpt2_files, t5_file, tokenizer_json
from tests.hugging_face.test_round_trips import write_checkpoint

SAMPLES = [
    *TEXT[:200],
    "".join(TEXT[200:260]),
    "The café's 3.5 m² — isn't “it”?  Two  spaces\t\ttabs\r\n\n\n   end ",
    "今天天气很好，我们去公园吧！中文没有空格。吾輩は猫である。한국어 😀 🏳️‍🌈",
    " leading",
    "trailing ",
    "a",
    " ",
]
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {"family": "llama"},
    "encoder": {"family": "bert", "next_sentence": False},
    "encoder_decoder": {"family": "t5"},
}


def trained(folder: Path) -> Path:
    """A SentencePiece model as `llmscale train` makes one."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("".join(TEXT) * 2)
    settings = {
        "sources": [{"paths": [str(folder / "text.txt")]}],
        "tokenizer": {"train": {"vocab_size": 600}},
    }
    (folder / "own.model").write_bytes(train_sentencepiece(DataConfig.model_validate(settings)))
    return folder / "own.model"


def byte_level_json(folder: Path) -> Path:
    """A tokenizer.json in the style of today's decoders."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return tokenizer_json(folder / "tokenizer.json", backend, {"<|begin_of_text|>": True, "<|eot|>": False})


def settings_of(kind: str, folder: Path) -> dict[str, Any]:  # noqa: PLR0911
    match kind:
        case "bpe":
            return {"kind": "sentencepiece", "path": str(trained(folder))}
        case "t5":
            return {"kind": "sentencepiece", "path": str(t5_file(folder))}
        case "llama":
            file = t5_file(
                folder, "tokenizer.model", model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, bos_id=1, eos_id=2, unk_id=0, pad_id=-1, vocab_size=800,
            )  # fmt: skip
            return {"kind": "sentencepiece", "path": str(file)}
        case "gpt2":
            return {"kind": "gpt2", "path": str(gpt2_files(folder))}
        case "wordpiece":
            return {"kind": "wordpiece", "path": str(bert_file(folder)), "lower_case": True}
        case "wordpiece_cased":
            return {"kind": "wordpiece", "path": str(bert_file(folder)), "lower_case": False}
        case "json":
            return {"kind": "huggingface", "path": str(byte_level_json(folder)), "special": {"eos": "<|eot|>"}}
    return {"kind": "bytes"}


KINDS = ["bpe", "t5", "llama", "gpt2", "wordpiece", "wordpiece_cased", "json", "bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_splits_text_as_we_do(kind: str, tmp_path: Path) -> None:
    architecture = {"t5": "encoder_decoder", "wordpiece": "encoder"}.get(kind, "decoder")
    settings = settings_of(kind, tmp_path / "files")
    run = write_checkpoint(tmp_path / "run", {**MODELS[architecture], "vocab_size": 900}, settings)
    export_checkpoint(run, tmp_path / "hf")
    ours, theirs = load_model(run).tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in SAMPLES:
        ids, expected = ours.encode(text), theirs.encode(text, add_special_tokens=False)
        assert ids == expected, text
        assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text)), text
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(theirs, f"{role}_token_id") == ours.special.get(role), role
    assert len(theirs) == ours.vocab_size
    whole = theirs.encode("words")
    if kind == "t5":
        assert whole == [*ours.encode("words"), ours.special["eos"]]
    if kind == "wordpiece":
        assert whole == [ours.special["cls"], *ours.encode("words"), ours.special["sep"]]

    # Back again: the same ids and roles, by the tokenizer.json that was written.
    import_directory(tmp_path / "hf", tmp_path / "back")
    back = load_tokenizer(tmp_path / "back" / "tokenizer")
    assert back.special == ours.special
    assert rebuilt(tmp_path / "back", tmp_path / "run-of-it") == back.digest
    assert all(back.encode(text) == theirs.encode(text, add_special_tokens=False) for text in SAMPLES)


def rebuilt(checkpoint: Path, folder: Path) -> str:
    """Digest of the tokenizer that a run with the config of a checkpoint would have, which `train.init_from` wants to
    be that of the checkpoint."""
    config = load_model(checkpoint).config
    return prepare_tokenizer(config.data, folder, roles=config.objective.roles(config.data.sequence_length)).digest


def published(folder: Path, kind: str) -> None:
    """The tokenizer files of a published model."""
    if kind == "gpt2":
        gpt2_files(folder)
        names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
    elif kind == "bert":
        bert_file(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    elif kind == "t5":
        t5_file(folder)
        config = {"extra_ids": 100, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        byte_level_json(folder)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "llama"])
def test_published_files_are_read(kind: str, tmp_path: Path) -> None:
    model = {"gpt2": {}, "llama": {"family": "llama"}, "bert": MODELS["encoder"], "t5": MODELS["encoder_decoder"]}[kind]
    export_checkpoint(
        write_checkpoint(tmp_path / "run", {**model, "vocab_size": 900}), tmp_path / "hf", with_tokenizer=False
    )
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    # No file names the end token of a llama here: its id in config.json does, as one of several.
    ends = {"bos_token_id": None, "eos_token_id": [601, 3] if kind == "llama" else None, "pad_token_id": None}
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **ends}))
    published(tmp_path / "hf", kind)
    import_directory(tmp_path / "hf", tmp_path / "ours")
    tokenizer = load_model(tmp_path / "ours").tokenizer
    special = {role: tokenizer.token_text(token) for role, token in tokenizer.special.items()}
    match kind:
        case "gpt2":
            assert special == {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
        case "bert":
            names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_TOKENS, strict=True))
            assert special == {**names, "bos": "[CLS]", "eos": "[SEP]"}
            assert tokenizer.encode("Hello") != tokenizer.encode("hello")
        case "t5":
            size = tokenizer.vocab_size
            assert tokenizer.special["sentinel_0"] == size - 1
            assert tokenizer.special["sentinel_99"] == size - 100
            assert (special["eos"], special["pad"], special["unk"]) == ("</s>", "<pad>", "<unk>")
        case "llama":
            assert special == {"bos": "<|begin_of_text|>", "eos": "<|eot|>"}
    assert rebuilt(tmp_path / "ours", tmp_path / "run-of-it") == tokenizer.digest
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", use_fast=True)
    for text in SAMPLES[-7:] if kind != "t5" else SAMPLES[:50]:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "word", "vocab_size": 100, "character_coverage": 1.0}, "a SentencePiece model of words or"),
        (
            {"user_defined_symbols": ["<ok>", "\uff21\uff22"]},
            "normalisation would make 'AB' of its user-defined symbol '\uff21\uff22', which no tokenizer.json",
        ),
    ],
)
def test_a_tokenizer_that_no_file_can_hold_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file = t5_file(tmp_path / "files", **settings)
    run = write_checkpoint(tmp_path / "run", {"vocab_size": 900}, {"kind": "sentencepiece", "path": str(file)})
    with pytest.raises(UserError, match=f"{reason}.*; give --no-tokenizer"):
        export_checkpoint(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    export_checkpoint(run, tmp_path / "hf", with_tokenizer=False)
    assert not list((tmp_path / "hf").glob("tokenizer*"))
