"""Words to mask whole: what begins one, told by Unicode's own properties and by BERT, for tokens cut anywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.objectives import build_objective
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.objectives.packing import Piece, Sample
from data_pipeline.tokenizer import BytesTokenizer, Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.words import Words
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import bert_file, gpt2_files, t5_file, tokenizer_json

SPACE = r"[\s\x1c-\x1f\u200b]"
PART = r"[\p{M}\p{Cf}--[\u200b]]"
SINGLE = (
    r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{sc=Thai}\p{sc=Laoo}\p{sc=Khmr}\p{sc=Mymr}--\p{No}]||"
    r"[^\p{L}\p{N}\p{M}\p{Cf}\s\x1c-\x1f]]"
)
LETTER = rf"(?:(?!{SINGLE})[\p{{L}}\p{{N}}]{PART}*)"
WORD = regex.compile(rf"(?V1)^{PART}+{LETTER}*|{SPACE}?{PART}*{LETTER}+|{SPACE}{PART}*|{SINGLE}{PART}*")
"""The rule in terms of Unicode's scripts and categories."""
ALPHABET = "aZé9２Ａｗд한국ﾊ用写中々〇はカーゞไทยှမ្ម \n\t\u3000\u00a0\u200b'_-,，。！€😀\u200d\ufe0f\u0301\U000e0100\x00"
MIXED = [
    ("用python写", ["用", "python", "写"]),
    ("我用Python3和C写", ["我", "用", "Python3", "和", "C", "写"]),
    ("第3章abc，hello", ["第", "3", "章", "abc", "，", "hello"]),
    ("中国어 人々はAB", ["中", "国", "어", "人", "々", "は", "AB"]),
    ("don't (stop)", ["don", "'", "t", "(", "stop", ")"]),
]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=ALPHABET) | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn"])),
       cuts=st.sets(st.integers(1, 60)))  # fmt: skip
def test_tokens_cut_anywhere_begin_the_words_of_the_text(text: str, cuts: set[int]) -> None:
    data = text.encode()
    edges = sorted({0, len(data)} | {cut for cut in cuts if cut < len(data)})
    pieces: list[bytes | bool] = [data[a:b] for a, b in itertools.pairwise(edges)]
    begun = Words(pieces).begin(np.arange(len(pieces))) if pieces else np.zeros(0, dtype=bool)
    found = [place for place, begins in zip(edges, begun.tolist(), strict=False) if begins and place]
    starts = {len(text[: match.start()].encode()) for match in WORD.finditer(text)}
    assert found == [edge for edge in edges[:-1] if edge in starts and edge]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


def prepared(folder: Path, **tokenizer: Any) -> Tokenizer:
    roles = ("cls", "sep", "mask", "pad")
    return prepare_tokenizer(config({"paths": ["unused"]}, tokenizer=tokenizer), folder / "tokenizer", roles=roles)


def settings_of(kind: str, folder: Path) -> dict[str, Any]:
    match kind:
        case "gpt2":
            return {"kind": "gpt2", "path": str(gpt2_files(folder / "gpt2"))}
        case "wordpiece":
            return {"kind": "wordpiece", "path": str(bert_file(folder / "bert")), "lower_case": False}
        case "llama":
            model = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
            spaces = {"remove_extra_whitespaces": False, "bos_id": 1, "eos_id": 2, "unk_id": 0, "pad_id": -1}
            return {"path": str(t5_file(folder / "llama", **model, **spaces, vocab_size=900))}
        case "json":
            backend = tokenizers.Tokenizer.from_str(
                prepared(folder / "of gpt2", **settings_of("gpt2", folder))._backend.to_str()  # type: ignore[attr-defined]
            )
            path = tokenizer_json(folder / "json" / "tokenizer.json", backend, {"<|endoftext|>": True})
            return {"kind": "huggingface", "path": str(path)}
    return {"kind": "bytes"}


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    ids = np.array(tokenizer.encode(text))
    starts = np.flatnonzero(tokenizer.begin_words(ids)).tolist()
    edges = [0, *[start for start in starts if start], len(ids)]
    spelled = [tokenizer.decode(ids[a:b]).strip() for a, b in itertools.pairwise(edges)]
    return [word for word in spelled if word]


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "json", "llama", "wordpiece"])
def test_letters_behind_other_scripts_begin_words(kind: str, folder: Path, tmp_path: Path) -> None:
    tokenizer = prepared(tmp_path, **settings_of(kind, folder))
    for text, words in MIXED:
        if kind == "wordpiece":
            cut = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
            spaced = tokenizers.normalizers.BertNormalizer(lowercase=False).normalize_str(text)
            ids = np.array(tokenizer.encode(text))
            assert tokenizer.begin_words(ids).sum() == len(cut(spaced)), text
        else:
            assert words_of(tokenizer, text) == words


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_masking_hides_such_words_by_themselves(kind: str, folder: Path, tmp_path: Path) -> None:
    tokenizer = prepared(tmp_path, **settings_of(kind, folder))
    ids = np.array(tokenizer.encode("用python写" * 12), dtype=np.int32)
    objective = build_objective(MaskedObjective(whole_words=True, rate=0.4), tokenizer, len(ids) + 2, 0)
    sample = Sample(ids, (Piece(0, 0, 0, 0, len(ids)),))
    weights = objective.arrays([sample] * 20, range(20))["weights"][:, 1:-1]
    bounds = [*np.flatnonzero(tokenizer.begin_words(ids)).tolist(), len(ids)]
    spans = [(a, b, tokenizer.decode(ids[a:b])) for a, b in itertools.pairwise(bounds) if tokenizer.decode(ids[a:b])]
    assert {word for _, _, word in spans} == {"用", "python", "写"}
    assert all(row[a:b].all() or not row[a:b].any() for row in weights for a, b, _ in spans)
    neighbours = [(row[a], row[c]) for row in weights for (a, _, _), (c, _, _) in itertools.pairwise(spans)]
    assert {(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)} <= set(neighbours)


SAMPLES_BEFORE = "5ad0c05a0f1c1ef7"


def test_a_tokenizer_that_was_saved_before_keeps_its_rule(tmp_path: Path) -> None:
    """Runs that exist see the same samples: the digest is of what was hidden before letters looked behind them."""
    prepared(tmp_path, kind="bytes")
    new = load_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["rules"]
    path.write_text(json.dumps(meta))
    old = load_tokenizer(tmp_path / "tokenizer")
    assert old.digest == new.digest
    assert hidden(old) == SAMPLES_BEFORE != hidden(new)
    old.save(tmp_path / "tokenizer")
    assert hidden(load_tokenizer(tmp_path / "tokenizer")) == SAMPLES_BEFORE
    path.write_text(json.dumps({**meta, "rules": 99}))
    with pytest.raises(UserError, match=r"meta.json has rules 99, but this llmscale knows those up to"):
        load_tokenizer(tmp_path / "tokenizer")


def hidden(tokenizer: Tokenizer) -> str:
    """A digest of what whole-word masking hides."""
    ids = np.array(BytesTokenizer().encode("用python写 a program，don't (stop) e\u0301. " * 6), dtype=np.int32)
    objective = build_objective(MaskedObjective(whole_words=True), tokenizer, len(ids) + 2, 7)
    sample = Sample(ids, (Piece(0, 0, 0, 0, len(ids)),))
    arrays = objective.arrays([sample] * 50, range(50))
    return hashlib.sha256(arrays["inputs"].tobytes() + arrays["weights"].tobytes()).hexdigest()[:16]
