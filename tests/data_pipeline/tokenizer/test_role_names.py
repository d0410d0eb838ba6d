"""Special tokens are recognised by the names that published files give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.roles import NAMES
from data_pipeline.tokenizer.store import interchangeable
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import gpt2_files, t5_file, tokenizer_json

PUBLISHED: dict[str, dict[str, str]] = {
    "Llama 2, Mistral": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "Gemma": {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"},
    "CodeGemma": {"fim_prefix": "<|fim_prefix|>", "fim_middle": "<|fim_middle|>", "fim_suffix": "<|fim_suffix|>"},
    "Qwen 2.5": {
        "eos": "<|endoftext|>",
        "fim_prefix": "<|fim_prefix|>",
        "fim_middle": "<|fim_middle|>",
        "fim_suffix": "<|fim_suffix|>",
    },
    "Llama 3": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
    "gpt-oss": {"bos": "<|startoftext|>", "eos": "<|endoftext|>"},
    "Jamba": {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|pad|>", "unk": "<|unk|>"},
    "Hunyuan": {"bos": "<|startoftext|>", "eos": "<|eos|>", "pad": "<|pad|>"},
    "KoGPT": {"bos": "[BOS]", "eos": "[EOS]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"},
    "GPT-2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "GPT-NeoX, Pythia": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|padding|>"},
    "BERT": {
        "bos": "[CLS]",
        "eos": "[SEP]",
        "pad": "[PAD]",
        "unk": "[UNK]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "mask": "[MASK]",
    },
    "XLNet": {
        "bos": "<s>",
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "cls": "<cls>",
        "sep": "<sep>",
        "mask": "<mask>",
    },
    "XLNet without </s>": {"eos": "<eod>"},
    "Command R": {"bos": "<BOS_TOKEN>", "eos": "<EOS_TOKEN>"},
    "DeepSeek": {
        "bos": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "eos": "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "pad": "<\uff5c\u2581pad\u2581\uff5c>",
        "fim_prefix": "<\uff5cfim\u2581begin\uff5c>",
        "fim_suffix": "<\uff5cfim\u2581hole\uff5c>",
        "fim_middle": "<\uff5cfim\u2581end\uff5c>",
    },
    "Seed-Coder": {
        "bos": "<[begin\u2581of\u2581sentence]>",
        "eos": "<[end\u2581of\u2581sentence]>",
        "fim_prefix": "<[fim-prefix]>",
        "fim_middle": "<[fim-middle]>",
        "fim_suffix": "<[fim-suffix]>",
    },
    "StarCoder": {
        "eos": "<|endoftext|>",
        "fim_prefix": "<fim_prefix>",
        "fim_middle": "<fim_middle>",
        "fim_suffix": "<fim_suffix>",
    },
    "SantaCoder": {
        "eos": "<|endoftext|>",
        "fim_prefix": "<fim-prefix>",
        "fim_middle": "<fim-middle>",
        "fim_suffix": "<fim-suffix>",
    },
    "CodeLlama": {
        "bos": "<s>",
        "eos": "</s>",
        "fim_prefix": "\u2581<PRE>",
        "fim_middle": "\u2581<MID>",
        "fim_suffix": "\u2581<SUF>",
    },
    "GLM-4": {
        "eos": "<|endoftext|>",
        "fim_prefix": "<|code_prefix|>",
        "fim_middle": "<|code_middle|>",
        "fim_suffix": "<|code_suffix|>",
    },
    "Falcon": {
        "eos": "<|endoftext|>",
        "fim_prefix": ">>PREFIX<<",
        "fim_middle": ">>MIDDLE<<",
        "fim_suffix": ">>SUFFIX<<",
    },
    "T5": {"eos": "</s>", "pad": "<pad>", "unk": "<unk>", **{f"sentinel_{i}": f"<extra_id_{i}>" for i in range(100)}},
    "mT5": {
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        **{f"sentinel_{i}": f"\u2581<extra_id_{i}>" for i in range(100)},
    },
}
"""The names in published files (tokenizer_config.json, or the vocabulary), by role."""


def prepared(folder: Path, path: Path, roles: tuple[str, ...] = (), **settings: Any) -> Tokenizer:
    data = config({"paths": ["unused"]}, tokenizer={"path": str(path), **settings})
    return prepare_tokenizer(data, folder, roles=roles)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level tokenizer.json without any special token."""
    path = gpt2_files(tmp_path_factory.mktemp("gpt2"))
    layout = json.loads(path.read_text())
    layout.pop("<|endoftext|>")
    layout = {token: number for number, token in enumerate(layout)}
    path.write_text(json.dumps(layout))
    return tokenizers.ByteLevelBPETokenizer(str(path), str(path.with_name("merges.txt")))._tokenizer.to_str()


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_published_names_give_roles(model: str, vocabulary: str, tmp_path: Path) -> None:
    names = PUBLISHED[model]
    backend = tokenizers.Tokenizer.from_str(vocabulary)
    added = {name: not name.startswith(("<\uff5cfim", "<extra")) for name in [*names.values(), "</s>"]}
    if "eos" in names and names["eos"] != "</s>":
        del added["</s>"]
    path = tokenizer_json(tmp_path / "tokenizer.json", backend, added)
    ids = tokenizers.Tokenizer.from_file(str(path)).token_to_id
    wanted = tuple(role for role in names if role.startswith(("fim", "sentinel")))
    tokenizer = prepared(tmp_path / "made", path, wanted, kind="huggingface")
    assert {role: tokenizer.special[role] for role in names} == {role: ids(name) for role, name in names.items()}
    assert tokenizer.vocab_size == backend.get_vocab_size(with_added_tokens=True)  # none was appended
    # Text that spells one out is text.
    for name in names.values():
        text = f"a {name} b"
        assert ids(name) not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_name_is_a_published_one() -> None:
    published = {(role, name) for names in PUBLISHED.values() for role, name in names.items()}
    assert {(role, name) for role, names in NAMES.items() for name in names} <= published


@pytest.mark.parametrize("spelling", ["\u2581<extra_id_{}>", "<extra_id_{}>"])
@pytest.mark.parametrize("kind", ["user_defined_symbols", "control_symbols"])
def test_sentinels_that_are_pieces_are_found(spelling: str, kind: str, tmp_path: Path) -> None:
    """As of mT5, whose ids count downwards; CodeLlama's fill-in-the-middle pieces likewise."""
    symbols = [spelling.format(number) for number in reversed(range(100))] + [
        "\u2581<PRE>",
        "\u2581<SUF>",
        "\u2581<MID>",
    ]
    path = t5_file(tmp_path, vocab_size=700, **{kind: symbols})
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = prepared(tmp_path / "made", path, ("sentinel_0", "sentinel_99", "fim_middle"))
    assert tokenizer.vocab_size == processor.vocab_size()
    for number in range(100):
        assert tokenizer.special[f"sentinel_{number}"] == processor.piece_to_id(spelling.format(number))
    assert tokenizer.special["fim_middle"] == processor.piece_to_id("\u2581<MID>")
    text = "Thank you <extra_id_0> me to <extra_id_1> party <PRE>"
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.special[role] for role in tokenizer.special if role != "unk"}


def test_a_copy_from_before_a_name_was_known_stays_the_same_tokenizer(vocabulary: str, tmp_path: Path) -> None:
    """Runs that begin from a checkpoint or from prepared data with fewer roles, by the copy that is kept there or by
    the published file."""
    names = PUBLISHED["DeepSeek"]
    path = tokenizer_json(
        tmp_path / "tokenizer.json", tokenizers.Tokenizer.from_str(vocabulary), dict.fromkeys(names.values(), True)
    )
    new = prepared(tmp_path / "new", path, kind="huggingface")
    old = load_tokenizer(tmp_path / "new")
    assert isinstance(old, StoredTokenizer)
    old.assign_roles({"eos": new.special["eos"]}, ("mask",))
    (tmp_path / "old").mkdir()
    old.save(tmp_path / "old")
    again = prepared(tmp_path / "again", tmp_path / "old" / "tokenizer.json", ("mask",), kind="huggingface")
    assert (again.digest, again.special) == (old.digest, old.special)
    assert not interchangeable(old, new)  # the mask token is behind the vocabulary
    old.assign_roles({"eos": new.special["eos"]})
    assert old.digest != new.digest
    assert interchangeable(old, new)
    assert interchangeable(new, old)
    old.assign_roles({"eos": new.special["pad"]})
    assert not interchangeable(old, new)
    # Another program's file of that name.
    for text in ("{", "[]", '{"special": {}}', '{"special": {"eos": 9}, "appended": [], "digest": "x"}'):
        (tmp_path / "meta.json").write_text(text)
        assert prepared(tmp_path / f"beside {len(text)}", path, kind="huggingface").digest == new.digest
