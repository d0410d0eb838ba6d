"""Tokenizer files as people publish them: read at import, split as the reference library splits, written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from llmscale.checkpoint.model import load_model
from llmscale.generate.prompts import contexts_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import TEXT, bert_file, gpt2_files, t5_file, tokenizer_json
from tests.hugging_face.test_round_trips import write_checkpoint

SAMPLES = [
    *TEXT[:60],
    "".join(TEXT[200:230]),
    "The café's 3.5 m² — isn't “it”?  Two  spaces\t\ttabs\r\n\n\n   end ",
    "今天天气很好，我们去公园吧！用python写。吾輩は猫である。한국어 😀 🏳️‍🌈",
    *(" leading", "trailing ", "a", " ", "  ", "\n", "x\x00y", "e\u0301"),
]
END = "<|endoftext|>"


def directory(folder: Path, files: dict[str, dict[str, Any]], **model: Any) -> Path:
    """A directory of a small model without a tokenizer, and these JSON files beside it."""
    run = write_checkpoint(folder / "run of it", {"vocab_size": 1000, **model}, {"kind": "bytes"})
    export_checkpoint(run, folder / "hf", with_tokenizer=False)
    values = json.loads((folder / "hf" / "config.json").read_text())
    ids = {f"{role}_token_id": None for role in ("bos", "eos", "pad")}
    (folder / "hf" / "config.json").write_text(json.dumps({**values, **ids}))
    for name, contents in files.items():
        (folder / "hf" / name).write_text(json.dumps(contents))
    return folder / "hf"


def ids_of(folder: Path) -> list[list[int]]:
    """By transformers, without what it puts around a text."""
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    return [reference.encode(text, add_special_tokens=False) for text in SAMPLES]


def require_same_ids(folder: Path, tmp_path: Path) -> list[str]:
    """Import and export keep the ids that transformers gives; returns the notes of import."""
    expected = ids_of(folder)
    notes = import_directory(folder, tmp_path / "ours")
    tokenizer = load_model(tmp_path / "ours").tokenizer
    assert [tokenizer.encode(text) for text in SAMPLES] == expected
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert ids_of(tmp_path / "back") == expected
    return notes


def byte_level(*, without: str = "", **options: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE in today's style; `without` are bytes, as characters of Latin-1, that it has no token for."""
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {ord(b): c for c, b in zip(_shown(), map(chr, _bytes()), strict=True)}
    alphabet = [c for byte, c in names.items() if chr(byte) not in without]
    special = [options["unk_token"]] if "unk_token" in options else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=special
    )
    plain = [text for text in TEXT if text.isascii()]
    backend.train_from_iterator([text.translate({ord(c): None for c in without}) for text in plain], trainer)
    return backend


def _bytes() -> list[int]:
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*shown, *(byte for byte in range(256) if byte not in shown)]


def _shown() -> list[str]:
    return [chr(byte) for byte in _bytes()[:188]] + [chr(0x100 + number) for number in range(68)]


@pytest.mark.parametrize(
    ("files", "roles"),
    [("json", ("bos", "eos", "unk")), ("json", ("bos", "eos", "unk", "pad")), ("gpt2", ("eos", "unk"))],
)
def test_the_unknown_token_may_be_the_end_token(files: str, roles: tuple[str, ...], tmp_path: Path) -> None:
    """As of GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Pythia."""
    names = {f"{role}_token": END for role in roles}
    folder = directory(tmp_path, {"tokenizer_config.json": {**names, "tokenizer_class": "GPT2Tokenizer"}})
    if files == "json":
        tokenizer_json(folder / "tokenizer.json", byte_level(), {END: True})
    else:
        gpt2_files(folder)
    require_same_ids(folder, tmp_path)
    ours = load_tokenizer(tmp_path / "ours" / "tokenizer")
    end = ours.special["eos"]
    assert {role: ours.token_text(token) for role, token in ours.special.items()} == dict.fromkeys(
        {"bos", *roles} - {"unk"}, END
    )
    # A run that names both, and goes on with its own copy.
    path = folder / ("tokenizer.json" if files == "json" else "vocab.json")
    kind = {"json": "huggingface", "gpt2": "gpt2"}[files]
    data = config(
        {"paths": ["unused"]}, tokenizer={"kind": kind, "path": str(path), "special": {"unk": END, "eos": END}}
    )
    for _ in range(2):
        assert prepare_tokenizer(data, tmp_path / "tokenizer").special["eos"] == end


def test_the_tokenizer_of_opt_puts_its_end_token_in_front(tmp_path: Path) -> None:
    """Vocabulary files of GPT-2's kind, with a flag of tokenizer_config.json."""
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    settings = {**names, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    folder = directory(tmp_path, {"tokenizer_config.json": settings}, family="opt")
    gpt2_files(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [theirs(text).input_ids for text in SAMPLES]
    import_directory(folder, tmp_path / "ours")
    trained = load_model(tmp_path / "ours")
    contexts = contexts_of(SAMPLES, trained.tokenizer, trained.model.config, "document")
    assert [context.key for context in contexts] == expected
    assert {ids[0] for ids in expected} == {theirs.eos_token_id}
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [back(text).input_ids for text in SAMPLES] == expected


def test_the_unknown_token_may_be_the_pad_token(tmp_path: Path) -> None:
    """As of many models that were tuned from Llama 2, here with a vocabulary that needs its unknown token."""
    folder = directory(
        tmp_path, {"tokenizer_config.json": {"unk_token": "<unk>", "pad_token": "<unk>"}}, family="llama"
    )
    file = t5_file(folder, "tokenizer.model", model_type="bpe", bos_id=1, eos_id=2, unk_id=0, pad_id=-1)
    import_directory(folder, tmp_path / "ours")
    ours = load_tokenizer(tmp_path / "ours" / "tokenizer")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert ours.special["pad"] == 0
    for text in [*SAMPLES, "<unk>", "a<unk>b"]:
        assert ours.encode(text) == processor.encode(text)


CONTROLS = "\x00\x01\x02\x03\x04\x05\x1f\x7f"


@pytest.mark.parametrize("unknown", [None, END])
def test_a_vocabulary_without_control_bytes_is_read(unknown: str | None, tmp_path: Path) -> None:
    """As SmolLM2's; what the library does with such bytes stays as it is, and is said."""
    options = {"unk_token": unknown} if unknown else {}
    folder = directory(tmp_path, {"tokenizer_config.json": {"eos_token": END}}, family="llama")
    backend = byte_level(without=CONTROLS + "\xf1\xf2", **options)
    tokenizer_json(folder / "tokenizer.json", backend, {END: True})
    (note,) = [note for note in require_same_ids(folder, tmp_path) if "bytes" in note]
    lacking = "10 of the bytes of UTF-8 (0x00 0x01 0x02 0x03 0x04 0x05 0x1F 0x7F 0xF1 0xF2)"
    assert f"{folder}/tokenizer.json has no token for {lacking}" in note
    ours = load_tokenizer(tmp_path / "ours" / "tokenizer")
    for text in ("a\x00b", "\x7f", "\U00050000", CONTROLS * 3, "ab\x1f\ncd 用", "plain"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids
        if unknown is None:
            assert ours.decode(ours.encode(text)) == backend.decode(backend.encode(text).ids)
    said: list[str] = []
    data = config({"paths": ["-"]}, tokenizer={"kind": "huggingface", "path": str(folder / "tokenizer.json")})
    prepare_tokenizer(data, tmp_path / "tokenizer", said.append)
    assert len(said) == 1
    assert said[0].startswith(f"note: {folder}/tokenizer.json has no token for 10 of the bytes")


@pytest.mark.parametrize("without", ["\n", "é", " ", "\xe4", "\x85"])
def test_a_vocabulary_without_letters_or_white_space_is_refused(without: str, tmp_path: Path) -> None:
    path = tokenizer_json(tmp_path / "tokenizer.json", byte_level(without=without), {END: True})
    data = config({"paths": ["-"]}, tokenizer={"kind": "huggingface", "path": str(path)})
    with pytest.raises(UserError, match="drops characters that are not in its vocabulary"):
        prepare_tokenizer(data, tmp_path / "tokenizer")


@pytest.mark.parametrize("model", ["byte level", "wordpiece"])
def test_padding_and_truncation_of_a_file_are_never_applied_nor_written(model: str, tmp_path: Path) -> None:
    """As of sentence-transformers."""
    if model == "wordpiece":
        entries = {token: i for i, token in enumerate(bert_file(tmp_path / "bert").read_text().splitlines())}
        backend = tokenizers.Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        ends = [("[CLS]", entries["[CLS]"]), ("[SEP]", entries["[SEP]"])]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
        backend.add_special_tokens(
            [AddedToken(t, special=True) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
        )
        settings = {"family": "bert", "next_sentence": False}
    else:
        backend, settings = byte_level(), {"family": "llama"}
        backend.add_special_tokens([END])
    plain = [backend.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    folder = directory(tmp_path, {"tokenizer_config.json": {"model_max_length": 8}}, **settings)
    backend.enable_truncation(8, stride=2)
    backend.enable_padding(length=16)
    tokenizer_json(folder / "tokenizer.json", backend)
    import_directory(folder, tmp_path / "ours")
    tokenizer = load_model(tmp_path / "ours").tokenizer
    assert [tokenizer.encode(text) for text in SAMPLES] == plain
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    written = json.loads((tmp_path / "back" / "tokenizer.json").read_text())
    assert (written["truncation"], written["padding"]) == (None, None)
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert [read.encode(text, add_special_tokens=False).ids for text in SAMPLES] == plain


LLAMA: dict[str, Any] = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "bos_id": 1, "eos_id": 2, "unk_id": 0, "pad_id": -1, "vocab_size": 800,
}  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
T5_NAMES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "T5Tokenizer"}
SENTINELS = [f"\u2581<extra_id_{number}>" for number in reversed(range(100))]
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", LLAMA, NAMES),
    "mistral": ("mistral", LLAMA, {**NAMES, "pad_token": "<unk>", "legacy": False}),
    "gemma": (
        "llama",
        {
            **LLAMA,
            **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False},
            **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
            "user_defined_symbols": ["<start_of_turn>", "\n\n", "\u2581\u2581\u2581"],
        },
        {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
    "t5": ("t5", {}, {**T5_NAMES, "extra_ids": 100}),
    "mt5": (
        "t5",
        {"byte_fallback": True, "vocab_size": 900, "user_defined_symbols": SENTINELS},
        {**T5_NAMES, "extra_ids": 0},
    ),
}
"""Families, settings of the SentencePiece model, and tokenizer_config.json of models that are published with one."""


@pytest.mark.parametrize("name", list(SENTENCEPIECE))
def test_sentencepiece_models_keep_their_ids(name: str, tmp_path: Path) -> None:
    """The sentencepiece library, we, and transformers with the exported folder; then once more around."""
    family, model, names = SENTENCEPIECE[name]
    folder = directory(tmp_path, {"tokenizer_config.json": names}, family=family)
    file = t5_file(folder, "spiece.model" if family == "t5" else "tokenizer.model", **model)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    expected = [processor.encode(text) for text in SAMPLES]
    original = transformers.AutoTokenizer.from_pretrained(folder)
    import_directory(folder, tmp_path / "ours")
    ours = load_model(tmp_path / "ours").tokenizer
    assert [ours.encode(text) for text in SAMPLES] == expected
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [back.encode(text, add_special_tokens=False) for text in SAMPLES] == expected
    assert [back.decode(ids, skip_special_tokens=True) for ids in expected] == [ours.decode(ids) for ids in expected]
    if name == "llama":  # transformers reads the others' files in ways of its own
        plain = [text for text in SAMPLES if text.strip() == text]
        found = [original.encode(text, add_special_tokens=False) for text in plain]
        assert found == [processor.encode(text) for text in plain]
    for role in ("bos", "eos", "pad"):
        wanted = names.get(f"{role}_token")
        token = None if wanted is None else processor.piece_to_id(wanted)
        assert (ours.special.get(role), getattr(back, f"{role}_token_id")) == (token, token)
    for number in range(100 if family == "t5" else 0):
        text = f"\u2581<extra_id_{number}>" if name == "mt5" else f"<extra_id_{number}>"
        sentinel = original.convert_tokens_to_ids(text)
        assert (ours.special[f"sentinel_{number}"], back.convert_tokens_to_ids(text)) == (sentinel, sentinel)
    assert len(back) == ours.vocab_size == processor.vocab_size() + (100 if name == "t5" else 0)
    import_directory(tmp_path / "back", tmp_path / "again")
    again = load_model(tmp_path / "again").tokenizer
    assert [again.encode(text) for text in SAMPLES] == expected
    assert again.special == ours.special
