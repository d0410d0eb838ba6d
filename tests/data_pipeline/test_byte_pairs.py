"""Where tiktoken takes over from the `tokenizers` library it gives the same tokens; elsewhere it stays away."""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizer.byte_pairs import NEVER, byte_characters, fast_encoder
from data_pipeline.tokenizer.hugging_face import HuggingFaceTokenizer
from tests.data_pipeline.vocabularies import TEXT, gpt2_files

Layout = dict[str, Any]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A trained byte-level BPE, as `tokenizer.json` has it."""
    vocabulary = gpt2_files(tmp_path_factory.mktemp("vocabulary"))
    trained = tokenizers.ByteLevelBPETokenizer(str(vocabulary), str(vocabulary.with_name("merges.txt")))
    return json.loads(trained.to_str())


def library(layout: Layout) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(json.dumps(layout))
    backend.encode_special_tokens = True
    return backend


@pytest.fixture(scope="module")
def reference(layout: Layout) -> tokenizers.Tokenizer:
    return library(layout)


@pytest.fixture(scope="module")
def fast(reference: tokenizers.Tokenizer) -> Callable[[str], np.ndarray]:
    encode = fast_encoder(reference)
    assert encode is not None
    return encode


def assert_same(encode: Callable[[str], np.ndarray], backend: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text, encoding in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        tokens = encode(text)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == encoding.ids, repr(text)


def test_characters_are_cut_alike(fast: Callable[[str], np.ndarray], reference: tokenizers.Tokenizer) -> None:
    """Two libraries of regular expressions agree on what is a letter, a number or a space: all characters of the first
    two planes, where scripts are, and every sixteenth beyond."""
    points = [*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 16)]
    texts = [f"a{chr(point)}1{chr(point)}! {chr(point)}" for point in points]
    assert_same(fast, reference, texts)


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t'slde1,世é😀\u00a0\u2028") | st.sampled_from(TEXT))
def test_any_text(fast: Callable[[str], np.ndarray], reference: tokenizers.Tokenizer, text: str) -> None:
    assert_same(fast, reference, [text, text * 3, f"it's {text}\r\n {text}"])


def test_special_looking_text_is_text(fast: Callable[[str], np.ndarray], reference: tokenizers.Tokenizer) -> None:
    assert_same(fast, reference, [f"a{NEVER}b {NEVER}", NEVER, "<|endoftext|>", "x<|endoftext|> y"])


@pytest.mark.parametrize("run", ["a", " ", "\n", "1", "!", "ab", "世", "\u00a0", "a ", " \n"])
def test_long_runs(fast: Callable[[str], np.ndarray], reference: tokenizers.Tokenizer, run: str) -> None:
    """Documents that make a slow tokenizer hang."""
    text = run * (1_000_000 // len(run))
    started = time.perf_counter()
    tokens = fast(text)
    assert time.perf_counter() - started < 20
    assert np.array_equal(tokens, reference.encode(text, add_special_tokens=False).ids)


def test_tokenizers_use_it(layout: Layout, reference: tokenizers.Tokenizer) -> None:
    """The point is time: ours against the library's, each at its best of five."""
    ours = HuggingFaceTokenizer(json.dumps(layout).encode())
    texts = ["".join(TEXT)] * 4
    own, other = ours.encode_batch, partial(reference.encode_batch_fast, add_special_tokens=False)
    seconds = [min(timeit.repeat(partial(encode, texts), number=1, repeat=5)) for encode in (own, other)]
    assert seconds[0] < 0.7 * seconds[1], seconds


def test_ids_in_another_order(layout: Layout) -> None:
    """As RoBERTa's, which count how often a token is used."""
    names = list(layout["model"]["vocab"])
    shuffled = np.random.default_rng(1).permutation(len(names)).tolist()
    model = {**layout["model"], "vocab": dict(zip(names, shuffled, strict=True))}
    backend = library({**layout, "model": model})
    encode = fast_encoder(backend)
    assert encode is not None
    assert_same(encode, backend, TEXT)


def merges_of(layout: Layout, *merges: tuple[str, str]) -> Layout:
    """The bytes and these merges alone."""
    tokens = [*byte_characters().values(), *("".join(merge) for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return {**layout, "model": {**layout["model"], "vocab": vocabulary, "merges": [list(merge) for merge in merges]}}


def with_model(layout: Layout, **settings: Any) -> Layout:
    return {**layout, "model": {**layout["model"], **settings}}


def added(layout: Layout, *, special: bool) -> Layout:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {**layout, "added_tokens": [{"id": len(layout["model"]["vocab"]), "content": "  ", **flags}]}


def cut(layout: Layout, **settings: bool) -> Layout:
    return {**layout, "pre_tokenizer": {**layout["pre_tokenizer"], **settings}}


SAME = {
    "a special token": lambda layout: added(layout, special=True),
    "merges of merges": lambda layout: merges_of(layout, ("a", "b"), ("ab", "c"), ("b", "c")),
    "a token that nothing makes": lambda layout: with_model(
        layout, vocab={**layout["model"]["vocab"], "xyzzy": 100_000}
    ),
}
OTHERS = {
    "an added token of text": lambda layout: added(layout, special=False),
    "a space in front": lambda layout: cut(layout, add_prefix_space=True),
    "words that are not cut": lambda layout: cut(layout, use_regex=False),
    "other words": lambda layout: {**layout, "pre_tokenizer": {"type": "Whitespace"}},
    "a normalisation": lambda layout: {**layout, "normalizer": {"type": "NFC"}},
    "dropout": lambda layout: with_model(layout, dropout=0.5),
    "whole words first": lambda layout: with_model(layout, ignore_merges=True),
    "a byte is missing": lambda layout: with_model(
        layout, vocab={token: number for token, number in layout["model"]["vocab"].items() if token != "\u0100"}
    ),
    # Merges make b and c one first, and then never a and bc: tiktoken would.
    "a token that its own merges miss": lambda layout: merges_of(layout, ("b", "c"), ("a", "b"), ("ab", "c")),
    "a token made in two ways": lambda layout: merges_of(layout, ("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")),
}


@pytest.mark.parametrize("change", list(SAME))
def test_taken_over(layout: Layout, change: str) -> None:
    backend = library(SAME[change](layout))
    encode = fast_encoder(backend)
    assert encode is not None
    assert_same(encode, backend, [*TEXT, "abc bc ab aabbcc xyzzy  ababcbc"])


@pytest.mark.parametrize("change", list(OTHERS))
def test_left_alone(layout: Layout, change: str) -> None:
    assert fast_encoder(library(OTHERS[change](layout))) is None


def test_other_kinds_are_left_alone() -> None:
    model = tokenizers.models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    assert fast_encoder(tokenizers.Tokenizer(model)) is None
