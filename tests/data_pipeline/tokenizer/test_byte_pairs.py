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
from data_pipeline.tokenizer.cuts import SPLITS
from data_pipeline.tokenizer.hugging_face import HuggingFaceTokenizer
from tests.data_pipeline.tokenizer.vocabularies import TEXT, gpt2_files

Layout = dict[str, Any]
Encode = Callable[[str], np.ndarray]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


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


def with_model(layout: Layout, **settings: Any) -> Layout:
    return {**layout, "model": {**layout["model"], **settings}}


def added(layout: Layout, *contents: str, **flags: bool) -> Layout:
    first = len(layout["model"]["vocab"]) + len(layout["added_tokens"])
    tokens = [{"id": first + i, "content": content, **FLAGS, **flags} for i, content in enumerate(contents)]
    return {**layout, "added_tokens": [*layout["added_tokens"], *tokens]}


def split(layout: Layout, pattern: str, **settings: Any) -> Layout:
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **settings}
    return {**layout, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, BYTES]}}


def composed(layout: Layout) -> Layout:
    return {**layout, "normalizer": {"type": "NFC"}}


def every_way(layout: Layout) -> Layout:
    """Merges for all ways to cut each token in two, as transformers writes them for a tiktoken vocabulary."""
    vocabulary: dict[str, int] = layout["model"]["vocab"]
    merges: list[list[str]] = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        pairs = [[token[:i], token[i:]] for i in range(1, len(token))]
        known = [pair for pair in pairs if all(part in vocabulary for part in pair)]
        merges += sorted(known, key=lambda pair: [vocabulary[part] for part in pair])
    return with_model(layout, merges=merges)


def digits(layout: Layout) -> Layout:
    first = {"type": "Digits", "individual_digits": True}
    return {
        **layout,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, {**BYTES, "use_regex": True}]},
    }


def text_bytes_alone(layout: Layout) -> Layout:
    missing = {byte_characters()[byte] for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    vocabulary = {token: number for token, number in layout["model"]["vocab"].items() if token not in missing}
    return with_model(layout, vocab=vocabulary)


LLAMA3 = SPLITS["GPT-4, Llama 3, OLMo 2"]
SPACES = [" " * count for count in range(24, 1, -1)]
PUBLISHED: dict[str, Callable[[Layout], Layout]] = {
    "GPT-2": lambda layout: added(layout, "<|endoftext|>", special=True),
    "GPT-NeoX": lambda layout: composed(added(text_bytes_alone(layout), *SPACES, normalized=True)),
    "Llama 3": lambda layout: split(every_way(with_model(layout, ignore_merges=True)), LLAMA3),
    "Qwen 3": lambda layout: composed(
        added(added(split(layout, SPLITS["Qwen 1.5 to 3"]), "<|im_end|>", special=True), "<think>", "</think>")
    ),
    "gpt-oss": lambda layout: split(every_way(layout), SPLITS["GPT-4o, gpt-oss"], behavior="Removed", invert=True),
    "Qwen 3.5": lambda layout: composed(split(layout, SPLITS["Qwen 3.5"])),
    "Mistral NeMo": lambda layout: split(layout, SPLITS["Mistral NeMo, Nemotron 3"]),
    "StarCoder": digits,
}
"""The forms in which these families' tokenizers are published, over the trained vocabulary."""


@pytest.fixture(scope="module", params=list(PUBLISHED))
def reference(request: pytest.FixtureRequest, layout: Layout) -> tokenizers.Tokenizer:
    return library(PUBLISHED[request.param](layout))


@pytest.fixture(scope="module")
def fast(reference: tokenizers.Tokenizer) -> Encode:
    encode = fast_encoder(reference)
    assert encode is not None
    return encode


def assert_same(encode: Encode, backend: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text, encoding in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        tokens = encode(text)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == encoding.ids, repr(text)


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_characters_are_cut_alike(fast: Encode, reference: tokenizers.Tokenizer, every: int) -> None:
    """Two libraries of regular expressions agree on what is a letter, of which case, a mark, a number, a space, or an
    `s` in capitals: characters of the first two planes, where scripts are, and some beyond."""
    points = [
        *range(0x400),
        *range(0x400, 0xD800, every),
        *range(0xE000, 0x20000, every),
        *range(0x20000, 0x110000, 16 * every),
    ]
    texts = [f"a{chr(point)}A1{chr(point)}! {chr(point)}'{chr(point)} 's'{chr(point)}E" for point in points]
    # Several in one text: most of the time goes into calls.
    assert_same(fast, reference, ["\n".join(texts[first : first + 20]) for first in range(0, len(texts), 20)])


@pytest.mark.parametrize("space", [" ", pytest.param("\n", marks=pytest.mark.slow)])
def test_any_number_of_spaces(fast: Encode, reference: tokenizers.Tokenizer, space: str) -> None:
    assert_same(fast, reference, ["a" + space * 1_100_000 + "x"])


@settings(max_examples=100, deadline=None)
@given(
    text=st.text()
    | st.text(alphabet=" \n\t'sSlLde1,/世é\u0301\u1100\u1161😀\u00a0\u2028<>think|im_end")
    | st.sampled_from([*TEXT, "<|im_end|>", "<think>", "</think>"])
)
def test_any_text(fast: Encode, reference: tokenizers.Tokenizer, text: str) -> None:
    assert_same(fast, reference, [text, text * 3, f"it's {text}\r\n {text}", f"<think>{text}<|im_end|>    {text}  "])


def test_special_looking_text_is_text(fast: Encode, reference: tokenizers.Tokenizer) -> None:
    assert_same(fast, reference, [f"a{NEVER}b {NEVER}", NEVER, "<|endoftext|>", "x<|endoftext|> y", "<|im_end|> "])


RUNS = ["a", " ", "\n", "1", "!", "ab", "世", "\u00a0", "a ", " \n", "aA", "\u0301", "/\n"]
QUICK = ("a", " ", "1", "世", " \n")


@pytest.mark.parametrize("run", [run if run in QUICK else pytest.param(run, marks=pytest.mark.slow) for run in RUNS])
def test_long_runs(fast: Encode, reference: tokenizers.Tokenizer, run: str) -> None:
    """Documents that make a slow tokenizer hang: a long run that something follows, and one at the end."""
    text = run * (300_000 // len(run)) + "x" + run * (30_000 // len(run))
    started = time.process_time()
    tokens = fast(text)
    assert time.process_time() - started < 10
    (expected,) = reference.encode_batch_fast([text], add_special_tokens=False)
    assert np.array_equal(tokens, expected.ids)


@pytest.mark.alone
def test_tokenizers_use_it(layout: Layout) -> None:
    """The point is time: ours against the library's, each at its best of five."""
    ours, reference = HuggingFaceTokenizer(json.dumps(layout).encode()), library(layout)
    texts = ["".join(TEXT)] * 4
    own, other = ours.encode_batch, partial(reference.encode_batch_fast, add_special_tokens=False)
    seconds = [min(timeit.repeat(partial(encode, texts), number=1, repeat=5)) for encode in (own, other)]
    assert seconds[0] < 0.7 * seconds[1], seconds


def test_ids_in_another_order(layout: Layout) -> None:
    """As RoBERTa's, which count how often a token is used."""
    names = list(layout["model"]["vocab"])
    shuffled = np.random.default_rng(1).permutation(len(names)).tolist()
    backend = library(with_model(layout, vocab=dict(zip(names, shuffled, strict=True))))
    encode = fast_encoder(backend)
    assert encode is not None
    assert_same(encode, backend, TEXT)


def test_added_tokens_within_others(layout: Layout) -> None:
    """The leftmost is taken, of those the longest; in a special token, which stays text, none is found."""
    changed = added(layout, "ab", "abc", "bcd", "c", normalized=True)
    backend = library(added(added(changed, "e", "fgh"), "ghab", "abx", special=True, normalized=True))
    encode = fast_encoder(backend)
    assert encode is not None
    assert_same(encode, backend, ["abcd", "ababcdc", "xabx abc", "ghabc", "fghabc", "abxab", "eabe", "c", "", "cc  c"])
    assert encode("abcd").tolist()[0] == backend.token_to_id("abc")


def merges_of(layout: Layout, *merges: tuple[str, str], **settings: Any) -> Layout:
    """The bytes and these merges alone."""
    tokens = [*byte_characters().values(), *("".join(merge) for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return with_model(layout, vocab=vocabulary, merges=[list(merge) for merge in merges], **settings)


def one_more(layout: Layout, token: str) -> Layout:
    return with_model(layout, vocab={**layout["model"]["vocab"], token: 100_000})


SAME = {
    "merges of merges": lambda layout: merges_of(layout, ("a", "b"), ("ab", "c"), ("b", "c")),
    "a token that nothing makes": lambda layout: one_more(layout, "xyzzy"),
    "a token made in two ways": lambda layout: merges_of(layout, ("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")),
    # Words alone, since a and bc meet in no other way.
    "a word that its own merges miss": lambda layout: merges_of(
        layout, ("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ignore_merges=True
    ),
}
OTHERS = {
    "added tokens that take the space before them": lambda layout: added(layout, "xyz", lstrip=True),
    "added tokens that are words": lambda layout: added(layout, "xyz", single_word=True),
    "added tokens that are no NFC": lambda layout: composed(added(layout, "e\u0301", normalized=True)),
    "a space in front": lambda layout: {
        **layout,
        "pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True},
    },
    "words that are not cut": lambda layout: {**layout, "pre_tokenizer": BYTES},
    "other words": lambda layout: {**layout, "pre_tokenizer": {"type": "Whitespace"}},
    "no words": lambda layout: {**layout, "pre_tokenizer": None},
    "another pattern": lambda layout: split(layout, LLAMA3.replace("{1,3}", "{1,2}")),
    "words without what lies between": lambda layout: split(layout, LLAMA3, behavior="Removed"),
    "digits in groups": lambda layout: {
        **layout,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTES]},
    },
    "another normalisation": lambda layout: {**layout, "normalizer": {"type": "NFKC"}},
    "dropout": lambda layout: with_model(layout, dropout=0.5),
    "a byte is missing": lambda layout: with_model(
        layout, vocab={token: number for token, number in layout["model"]["vocab"].items() if token != "\u0100"}
    ),
    # Merges make b and c one first, and then never a and bc: tiktoken would.
    "a token that its own merges miss": lambda layout: merges_of(layout, ("b", "c"), ("a", "b"), ("ab", "c")),
    "a word that its own merges miss, and others would not": lambda layout: merges_of(
        layout, ("b", "c"), ("a", "b"), ("ab", "c"), ignore_merges=True
    ),
    "a token whose merges lie apart": lambda layout: merges_of(
        layout, ("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")
    ),
    "a word that nothing makes": lambda layout: one_more(with_model(layout, ignore_merges=True), "the\u0120the"),
}


@pytest.mark.parametrize("change", list(SAME))
def test_taken_over(layout: Layout, change: str) -> None:
    backend = library(SAME[change](layout))
    encode = fast_encoder(backend)
    assert encode is not None
    assert_same(encode, backend, [*TEXT, "abc bc ab aabbcc xyzzy  ababcbc", "abc", "xabc abcx"])


@pytest.mark.parametrize("change", list(OTHERS))
def test_left_alone(layout: Layout, change: str) -> None:
    assert fast_encoder(library(OTHERS[change](layout))) is None


@settings(max_examples=80, deadline=None)
@given(random=st.randoms(use_true_random=False), whole_words=st.booleans(), shuffled=st.booleans())
def test_any_merges(layout: Layout, random: Any, whole_words: bool, shuffled: bool) -> None:
    """Small vocabularies with some or all ways to make their tokens: where tiktoken takes over, all words come out as
    the merges make them."""
    tokens = ["a", "b"]
    for _ in range(random.randint(2, 7)):
        tokens.append(random.choice(tokens) + random.choice(tokens))
    made = list(dict.fromkeys(token for token in tokens if 1 < len(token) <= 6))
    if shuffled:
        random.shuffle(made)
    share, merges = random.choice([0.5, 1.0]), []
    for token in made:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if {token[:i], token[i:]} <= {"a", "b", *made}]
        merges += [pair for pair in random.sample(pairs, len(pairs)) if random.random() < share] or pairs[:1]
    backend = library(merges_of(layout, *merges, ignore_merges=whole_words))
    encode = fast_encoder(backend)
    words = ["".join(random.choices("ab", k=random.randint(1, 14))) for _ in range(200)]
    if encode is not None:
        assert_same(encode, backend, [" ".join(words), *words[:20]])


def test_other_kinds_are_left_alone() -> None:
    model = tokenizers.models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    assert fast_encoder(tokenizers.Tokenizer(model)) is None
