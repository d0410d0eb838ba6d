"""Tokenizers of others give the ids that their own libraries give, keep text text, and come back from a run's copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast, GPT2TokenizerFast, PreTrainedTokenizerFast, T5Tokenizer

from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.sentence_piece import encoder
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import TEXT, bert_file, gpt2_files, t5_file, tokenizer_json

TEXTS = [
    "",
    " ",
    "Hello, world! don't they're I'd 1,234.5 x_y",
    "  leading,  double\n\n\nlines \t tabs\r\nand trailing   ",
    "你好，世界。今天是２０２４年，价格￥９９。繁體字",
    "吾輩は猫である 한국어 ไทย עברית",
    "😀 👨‍👩‍👧‍👦 🇩🇪 ❤️",
    "e\u0301 é ﬁ ½ ① Ⅷ ﷺ",
    "\x00\x01\x1b[0m\x7f\x85\u200b\u200d\u2028\u2029\ufeff\ufffd\ufffe",
    "def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}  # ok\n",
    "a" * 300 + " " * 50 + "b",
    *TEXT[:40],
]
SPECIAL_LOOKING = [
    "<|endoftext|>",
    "a<|endoftext|>b",
    "</s>",
    "x </s> y",
    "<pad><unk>",
    "[SEP]",
    "a [MASK] b",
    "<extra_id_0>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


def prepared(folder: Path, roles: tuple[str, ...] = (), **tokenizer: Any) -> Tokenizer:
    data = config({"paths": ["unused"]}, tokenizer=tokenizer)
    return prepare_tokenizer(data, folder / "tokenizer", roles=roles)


def assert_same(ours: Tokenizer, reference: Callable[[str], list[int]], texts: list[str]) -> None:
    encoded = ours.encode_batch(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == reference(text) == ours.encode(text), repr(text)


def plain(reference: Any) -> Callable[[str], list[int]]:
    """Ids by transformers, which is told to leave special-looking text alone."""
    return lambda text: reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_gpt2_as_transformers(folder: Path, tmp_path: Path) -> None:
    path = gpt2_files(folder / "gpt2")
    ours = prepared(tmp_path, kind="gpt2", path=str(path))
    reference = GPT2TokenizerFast.from_pretrained(path.parent)
    assert_same(ours, plain(reference), TEXTS + SPECIAL_LOOKING)
    assert ours.vocab_size == len(reference)
    assert ours.special == {"bos": reference.bos_token_id, "eos": reference.eos_token_id}
    for text in TEXTS + SPECIAL_LOOKING:
        assert ours.decode(ours.encode(text)) == text
    names = prepared(tmp_path / "other names", kind="gpt2", **_renamed(path, tmp_path, "encoder.json", "vocab.bpe"))
    assert names.digest == ours.digest
    named = prepared(tmp_path / "named", kind="gpt2", **_renamed(path, tmp_path, "a.json", "b.txt", named=True))
    assert named.digest == ours.digest


def _renamed(path: Path, folder: Path, vocabulary: str, merges: str, *, named: bool = False) -> dict[str, str]:
    (folder / vocabulary).write_bytes(path.read_bytes())
    (folder / merges).write_bytes(path.with_name("merges.txt").read_bytes())
    return {"path": str(folder / vocabulary), **({"merges": str(folder / merges)} if named else {})}


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t'a1,世é😀\u00a0"))
def test_gpt2_loses_nothing(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert not set(ids) & set(gpt2.special.values())


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> Tokenizer:
    return prepared(folder / "for hypothesis", kind="gpt2", path=str(gpt2_files(folder / "gpt2")))


@pytest.mark.parametrize("lower_case", [True, False])
def test_wordpiece_as_transformers(folder: Path, tmp_path: Path, lower_case: bool) -> None:
    path = bert_file(folder / "bert")
    ours = prepared(tmp_path, kind="wordpiece", path=str(path), lower_case=lower_case)
    reference = BertTokenizerFast.from_pretrained(path.parent, do_lower_case=lower_case)
    assert_same(ours, plain(reference), TEXTS + SPECIAL_LOOKING)
    assert ours.special == {
        "bos": reference.cls_token_id,
        "eos": reference.sep_token_id,
        "pad": reference.pad_token_id,
        "unk": reference.unk_token_id,
        "cls": reference.cls_token_id,
        "sep": reference.sep_token_id,
        "mask": reference.mask_token_id,
    }
    pair = reference("one two")["input_ids"]
    assert ours.decode(pair) == reference.decode(pair, skip_special_tokens=True) == "one two"


def test_ernie_numbers_its_lines(folder: Path, tmp_path: Path) -> None:
    path = bert_file(folder / "bert")
    lines = path.read_text(encoding="utf-8").splitlines()
    (tmp_path / "ernie.txt").write_text("".join(f"{t}\t{i}\n" for i, t in enumerate(lines)), encoding="utf-8")
    ernie = prepared(tmp_path / "a", kind="wordpiece", path=str(tmp_path / "ernie.txt"))
    bert = prepared(tmp_path / "b", kind="wordpiece", path=str(path))
    assert_same(ernie, bert.encode, TEXTS)
    assert ernie.special == bert.special


def test_t5_as_transformers_and_sentencepiece(folder: Path, tmp_path: Path) -> None:
    path = t5_file(folder / "t5")
    sentinels = tuple(f"sentinel_{i}" for i in range(100))
    ours = prepared(tmp_path, sentinels, path=str(path))
    reference = T5Tokenizer.from_pretrained(path.parent)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert_same(ours, processor.encode, TEXTS + SPECIAL_LOOKING)
    # transformers also splits at U+0085 and other separators, which T5's normalisation leaves alone.
    assert_same(ours, plain(reference), [text for text in TEXTS if "\x85" not in text])
    assert ours.vocab_size == len(reference)
    roles = {role: ours.special[role] for role in ("pad", "eos", "unk")}
    assert roles == {"pad": 0, "eos": reference.eos_token_id, "unk": reference.unk_token_id}
    assert [ours.special[role] for role in sentinels] == [
        reference.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)
    ]
    assert "bos" not in ours.special
    ids = [ours.special["sentinel_0"], *ours.encode("Hello world"), ours.special["eos"]]
    assert ours.decode(ids) == "Hello world"


class _Inner:
    """The inner part of another release of sentencepiece: its calls take other arguments, or give other tokens."""

    def __init__(self, encode: Callable[..., bytes]) -> None:
        self._EncodeAsBuffer = encode


class _Processor:
    def __init__(self, processor: sentencepiece.SentencePieceProcessor, **parts: Any) -> None:
        self._public = processor
        vars(self).update(parts)

    def encode(self, text: str, return_type: str) -> np.ndarray:
        return self._public.encode(text, return_type=return_type)


@pytest.mark.parametrize("inner", ["none", "no encoder", "other arguments", "other tokens", "other type"])
def test_another_release_of_sentencepiece_encodes_by_its_public_method(folder: Path, inner: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(t5_file(folder)))
    parts: dict[str, dict[str, object]] = {
        "none": {},
        "no encoder": {"_processor": object()},
        "other arguments": {"_processor": _Inner(lambda text: b"")},
        "other tokens": {"_processor": _Inner(lambda *_: np.arange(9, dtype=np.int32).tobytes())},
        "other type": {"_processor": _Inner(lambda *_: b"123")},
    }
    encode = encoder(_Processor(processor, **parts[inner]))
    for text in TEXTS:
        assert encode(text).tolist() == processor.encode(text)


def test_models_without_roles_and_with_odd_ones(folder: Path, tmp_path: Path) -> None:
    bare = t5_file(
        folder / "bare",
        unk_id=0,
        pad_id=-1,
        eos_id=-1,
        user_defined_symbols=["<eod>", "<sep>"],
        control_symbols=["<cls>"],
    )
    ours = prepared(tmp_path, path=str(bare))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(bare))
    assert {role: ours.token_text(token) for role, token in ours.special.items()} == {
        "unk": "<unk>",
        "eos": "<eod>",
        "cls": "<cls>",
        "sep": "<sep>",
    }
    # SentencePiece itself takes user-defined symbols out of any text.
    assert ours.special["eos"] in processor.encode("a<eod>b")
    for text in ("<eod>", "a<eod>b", "<sep> <eod><eod>", "<cls>"):
        ids = ours.encode(text)
        assert not set(ids) & {ours.special[role] for role in ("eos", "sep", "cls")}
        assert ours.decode(ids).replace(" ", "") == text.replace(" ", "")
    appended = prepared(tmp_path / "appended", ("eos", "mask"), path=str(t5_file(folder / "no eos", eos_id=-1)))
    size = appended.vocab_size
    assert (appended.special["eos"], appended.special["mask"]) == (size - 2, size - 1)


def unigram(folder: Path) -> Path:
    reference = T5Tokenizer.from_pretrained(t5_file(folder / "t5").parent)
    return tokenizer_json(folder / "unigram" / "tokenizer.json", reference.backend_tokenizer)


def test_tokenizer_json_as_transformers(folder: Path, tmp_path: Path) -> None:
    path = unigram(folder)
    ours = prepared(tmp_path, kind="huggingface", path=str(path))
    reference = PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert_same(ours, plain(reference), TEXTS)
    assert ours.vocab_size == len(reference)
    assert [ours.special[f"sentinel_{i}"] for i in range(100)] == [ours.vocab_size - 1 - i for i in range(100)]
    # A Unigram model of this library matches `</s>` like any other piece.
    assert reference.convert_tokens_to_ids("</s>") in plain(reference)("x </s> y")
    for text in SPECIAL_LOOKING:
        ids = ours.encode(text)
        assert not set(ids) & (set(ours.special.values()) - {ours.special["unk"]}), text


def byte_level(path: Path, vocabulary: Path, added: dict[str, bool]) -> Path:
    backend = tokenizers.ByteLevelBPETokenizer(str(vocabulary), str(vocabulary.with_name("merges.txt")))._tokenizer
    return tokenizer_json(path, backend, added)


def test_added_tokens_of_text_and_of_roles(folder: Path, tmp_path: Path) -> None:
    added = {"<|fim_prefix|>": False, "<|end|>": False, "<|endoftext|>": True, "  ": False}
    path = byte_level(tmp_path / "tokenizer.json", gpt2_files(folder / "gpt2"), added)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(path))
    ids = reference.convert_tokens_to_ids
    ours = prepared(tmp_path / "a", kind="huggingface", path=str(path), special={"eos": "<|end|>"})
    assert ours.special == {"bos": ids("<|endoftext|>"), "eos": ids("<|end|>"), "fim_prefix": ids("<|fim_prefix|>")}
    for name in ("<|fim_prefix|>", "<|end|>", "<|endoftext|>"):
        assert ours.decode(ours.encode(f"a{name}b")) == f"a{name}b"
        assert ids(name) not in ours.encode(f"a{name}b")
        assert ours.decode([ids(name), *ours.encode("x"), ids(name)]) == "x"
    # A run of spaces has no role: it is matched as the library does.
    assert ids("  ") in ours.encode("x  y")
    other = prepared(tmp_path / "b", kind="huggingface", path=str(path))
    assert other.special["eos"] == ids("<|endoftext|>")
    assert ids("<|end|>") in other.encode("a<|end|>b")


def test_roles_as_the_settings_beside_name_them(folder: Path, tmp_path: Path) -> None:
    path = byte_level(tmp_path / "tokenizer.json", gpt2_files(folder / "gpt2"), {"<|stop|>": True, "<s>": True})
    beside = {"eos_token": {"content": "<|stop|>"}, "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**beside, "mask_token": None, "pad_token": "<none>"}))
    ours = prepared(tmp_path / "a", kind="huggingface", path=str(path))
    texts = {role: ours.token_text(token) for role, token in ours.special.items()}
    assert texts == {"eos": "<|stop|>", "bos": "<|endoftext|>"}


def test_truncation_and_padding_of_a_file_are_not_used(folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(unigram(folder)))
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    ours = prepared(tmp_path, kind="huggingface", path=str(tokenizer_json(tmp_path / "cut.json", backend)))
    whole = prepared(tmp_path / "whole", kind="huggingface", path=str(unigram(folder)))
    assert_same(ours, whole.encode, TEXTS)


KINDS = {
    "gpt2": lambda folder: {"kind": "gpt2", "path": str(gpt2_files(folder / "gpt2"))},
    "wordpiece": lambda folder: {"kind": "wordpiece", "path": str(bert_file(folder / "bert")), "lower_case": False},
    "sentencepiece": lambda folder: {"path": str(t5_file(folder / "t5"))},
    "huggingface": lambda folder: {"kind": "huggingface", "path": str(unigram(folder))},
    "bytes": lambda folder: {"kind": "bytes"},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_keeps_its_own_copy(folder: Path, tmp_path: Path, kind: str) -> None:
    """The copy needs nothing of the given files, and has the roles that were appended."""
    wanted = ("cls", "mask", "fim_middle", "sentinel_1", "sentinel_0")
    made = prepared(tmp_path, wanted, **KINDS[kind](folder))
    (tmp_path / "tokenizer").rename(tmp_path / "moved")
    loaded = load_tokenizer(tmp_path / "moved")
    for name in ("kind", "vocab_size", "special", "digest"):
        assert getattr(loaded, name) == getattr(made, name)
    every = np.arange(made.vocab_size)
    assert (loaded.begin_words(every) == made.begin_words(every)).all()
    assert set(wanted) <= set(loaded.special)
    without = prepared(tmp_path / "without", **KINDS[kind](folder))
    lacked = [role for role in ("cls", "mask", "fim_middle", "sentinel_1", "sentinel_0") if role not in without.special]
    assert [loaded.special[role] for role in lacked] == list(range(without.vocab_size, loaded.vocab_size))
    assert loaded.vocab_size == without.vocab_size + len(lacked)
    assert loaded.digest != without.digest
    assert_same(loaded, without.encode, TEXTS)
    own = loaded.encode("one two")
    assert loaded.decode([loaded.special["fim_middle"], *own, loaded.special["mask"]]) == without.decode(own)
    for token in (loaded.vocab_size, -1):
        with pytest.raises(ValueError, match=rf"token id {token} is not in the vocabulary of {loaded.vocab_size}"):
            loaded.decode([token])


@pytest.mark.parametrize("kind", list(KINDS))
def test_word_starts(folder: Path, tmp_path: Path, kind: str) -> None:
    """Joined where no word starts, the tokens of a text are its words, punctuation marks and Chinese characters."""
    ours = prepared(tmp_path, ("mask",), **KINDS[kind](folder))
    special = np.array(list(ours.special.values()))
    assert ours.begin_words(special).all()
    text = "unbelievable textwrapping, of naïve parentheses. 今天天气"
    ids = np.array(ours.encode(text))
    starts = ours.begin_words(ids)
    assert (starts.shape, starts.dtype) == (ids.shape, np.dtype(bool))
    words: list[list[int]] = []
    for token, start in zip(ids.tolist(), starts.tolist(), strict=True):
        if start or not words:
            words.append([])
        words[-1].append(token)
    spelled = ["".join(ours.decode(word).split()) for word in words]
    # Some vocabularies have whole Chinese words.
    joined = [part for word in spelled for part in (word if word in "今天天气" else [word])]
    assert joined == ["unbelievable", "textwrapping", ",", "of", "naïve", "parentheses", ".", *"今天天气"]


def test_forked_workers_encode_and_no_threads_are_made(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, since what other tests use of the library would count too."""
    path = gpt2_files(folder / "gpt2")
    prepared(tmp_path, kind="gpt2", path=str(path))
    script = """
import os, sys, threading
from data_pipeline.tokenizer import load_tokenizer
os.environ["TOKENIZERS_PARALLELISM"] = "true"
tokenizer = load_tokenizer(sys.argv[1])
texts = ["some text, again"] * 1000
expected = tokenizer.encode_batch(texts)[0].tolist()
assert len(os.listdir("/proc/self/task")) == int(sys.argv[2]), os.listdir("/proc/self/task")
child = os.fork()
if child == 0:
    os._exit(0 if tokenizer.encode_batch(texts)[-1].tolist() == expected else 1)
sys.exit(os.waitpid(child, 0)[1])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "tokenizer"), "1"],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
