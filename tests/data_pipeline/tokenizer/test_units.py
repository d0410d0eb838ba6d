"""Tokens of labelled words and characters beside brute force over bytes: none is a part of two of them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from data_pipeline.tokenizer.hugging_face import GPT2Tokenizer, HuggingFaceTokenizer, WordPieceTokenizer
from data_pipeline.tokenizer.sentence_piece import SentencePieceTokenizer
from data_pipeline.tokenizer.units import characters, encode_units, words
from tests.data_pipeline.tokenizer.vocabularies import TEXT, bert_file, gpt2_files, t5_file, tokenizer_json

KINDS = ("bytes", "gpt2", "bert", "t5", "bpe", "json")
PARTS = [
    "Washington", "U.S.", "don't", "naïve", "Zoe\u0308", "a\u0323\u0302", "北京", "今天天气很好", "公园",
    "京", "한국어", "の", "👍🏽", "👨\u200d👩\u200d👧", "🇩🇪", "😀😀", "👍", "😀好",
    "(", "...", "“", "1,000", "\u200b", "\u00ad", "ﬁ", "①", "\uff25", "ß", "self", "x" * 9,
]  # fmt: skip


@functools.cache
def folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())


@functools.cache
def tokenizer(kind: str) -> StoredTokenizer:
    match kind:
        case "bytes":
            return BytesTokenizer()
        case "gpt2":
            gpt2 = gpt2_files(folder() / "gpt2")
            return GPT2Tokenizer(gpt2.read_bytes(), gpt2.with_name("merges.txt").read_bytes())
        case "bert":
            return WordPieceTokenizer(bert_file(folder() / "bert").read_bytes(), lower_case=True)
        case "t5":
            return SentencePieceTokenizer(t5_file(folder() / "t5").read_bytes())
        case "bpe":
            path = t5_file(folder() / "bpe", model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                           vocab_size=900)  # fmt: skip
            return SentencePieceTokenizer(path.read_bytes())
        case _:
            backend = tokenizers.SentencePieceBPETokenizer()
            backend.train_from_iterator(TEXT, vocab_size=600, special_tokens=["</s>", "<unk>"], show_progress=False)
            path = tokenizer_json(folder() / "tokenizer.json", backend._tokenizer, {"</s>": True, "<unk>": True})
            return HuggingFaceTokenizer(path.read_bytes())


@given(
    st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(["", " ", "  ", "\n", "\u3000"]), st.booleans())),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_part_of_two_units(kind: str, drawn: list[tuple[str, str, bool]], cut: bool) -> None:
    """Units as they come, cut into characters or not, some of them left out."""
    text, units = "", []
    for part, gap, wanted in drawn:
        text += gap
        if wanted:
            places = characters(part) if cut else [(0, len(part))]
            units += [(len(text) + start, len(text) + end) for start, end in places]
        text += part
    _check(kind, text, units)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [words, characters])
def test_single_signs_of_any_script(kind: str, of: object) -> None:
    text = " ".join(PARTS) + "".join(PARTS)
    _check(kind, text, of(text))  # type: ignore[operator]


def _check(kind: str, text: str, units: list[tuple[int, int]]) -> None:
    known = tokenizer(kind)
    found = encode_units(known, text, units)
    data = text.encode()
    owners = np.full(len(data), -1)
    for number, (start, end) in enumerate(units):
        owners[len(text[:start].encode()) : len(text[:end].encode())] = number
    firsts: dict[int, int] = {}
    for place, (start, end) in enumerate(found.spans.tolist()):
        own = set(owners[start:end].tolist()) - {-1}
        assert len(own) <= 1, (text, data[start:end])
        assert found.units[place] == (own.pop() if own else -1)
        if found.units[place] >= 0:
            firsts.setdefault(int(found.units[place]), place)
    assert found.firsts.tolist() == [firsts.get(number, -1) for number in range(len(units))]
    assert (np.diff(found.spans[:, 1]) >= 0).all()
    whole, _ = known.encode_with_spans(text)
    if not units:
        assert found.ids.tolist() == whole.tolist()
    if kind in ("bytes", "gpt2"):
        assert known.decode(found.ids) == text
    covered = {place for start, end in found.spans.tolist() for place in range(start, end)}
    lost = [number for number in range(len(units)) if number not in firsts]
    for number in lost:
        assert not covered & set(np.flatnonzero(owners == number).tolist())


def test_a_word_alone_is_as_the_tokenizer_has_it() -> None:
    text = "return self._text"
    assert encode_units(tokenizer("gpt2"), text, words(text)[:1]).ids.tolist() == tokenizer("gpt2").encode(text)


def test_words_and_characters() -> None:
    text = "Zoe\u0308 O'Hara, 北京 👨‍👩‍👧🇩🇪🇫🇷 3.5"
    assert [text[start:end] for start, end in words(text)] == [
        "Zoe\u0308", "O", "'", "Hara", ",", "北", "京", "👨‍👩‍👧", "🇩🇪", "🇫🇷", "3", ".", "5",
    ]  # fmt: skip
    assert [text[start:end] for start, end in characters("ae\u0301 👍🏽")] == [
        text[start:end] for start, end in [(0, 1), (1, 3), (4, 6)]
    ]
