"""Unigram SentencePiece models with user-defined symbols, as `data.tokenizer.train.model: unigram` makes them: the
exported tokenizer.json splits text as the SentencePiece library does, through `tokenizers` and through transformers."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.tokenizer.training import train_sentencepiece
from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.hugging_face.sentencepiece_model import as_library_tokenizer, user_symbols
from tests.data_pipeline.tokenizer.vocabularies import TEXT
from tests.hugging_face.test_round_trips import write_checkpoint

ROOT = Path(__file__).parents[2]
TRAINED = {
    "english": ([ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], 900),
    "chinese": ([ROOT / "README.zh-CN.md"], 1200),
    "python": (sorted((ROOT / "llmscale").rglob("*.py")), 900),
}
"""Sources and pieces of models that `llmscale train` trains; only Python's lines are indented often enough."""
INDENTS = [text.replace(" ", "\u2581") for text in ("\n    ", "\n        ", "\n\n    ")]
OVERLAPPING = ["<sep>", "<sep><sep>", "ab", "bc", "abc", "\u2603", "\u2603x"]
MADE: dict[str, dict[str, Any]] = {
    "no bytes": {"user_defined_symbols": INDENTS, "byte_fallback": False},
    "overlapping": {"user_defined_symbols": OVERLAPPING},
    "overlapping, no bytes": {"user_defined_symbols": OVERLAPPING, "byte_fallback": False},
    # Here the newline is no piece of its own, so that splits of a text differ in the number of unknown characters.
    "unknown parts": {"user_defined_symbols": [*INDENTS, "\u2603\u2603", "\u2603\u2602"], "without": "\n"},
    "no bracket": {"user_defined_symbols": INDENTS, "without": "<"},
    "normalised": {
        "user_defined_symbols": OVERLAPPING,
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
    },
    "extra spaces": {"user_defined_symbols": ["<sep>"], "add_dummy_prefix": True, "remove_extra_whitespaces": True},
}
"""Settings of SentencePiece beyond what the pipeline gives it, and a character that the text does not have."""


@cache
def trained(name: str) -> bytes:
    """A `.model` file."""
    if name in TRAINED:
        paths, size = TRAINED[name]
        source = {"paths": [str(path) for path in paths]}
        train = {"vocab_size": size, "model": "unigram"}
        return train_sentencepiece(DataConfig.model_validate({"sources": [source], "tokenizer": {"train": train}}))
    given_settings = dict(MADE[name])
    without = given_settings.pop("without", "\0")
    texts = ["".join(TEXT[start : start + 100]) for start in range(0, len(TEXT), 100)]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.replace(without, " ") for text in texts),
        model_writer=made,
        **{
            "model_type": "unigram", "vocab_size": 600, "byte_fallback": True, "normalization_rule_name": "identity",
            "add_dummy_prefix": False, "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
            "hard_vocab_limit": False, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3, "minloglevel": 3,
            **given_settings,
        },
    )  # fmt: skip
    return made.getvalue()


@pytest.fixture(scope="module", params=[*TRAINED, *(pytest.param(name, marks=pytest.mark.slow) for name in MADE)])
def pair(request: pytest.FixtureRequest) -> tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer]:
    """The library's own tokenizer, and what is written of it."""
    contents = trained(request.param)
    assert len(user_symbols(contents)) >= {"python": 5, "english": 0, "chinese": 0}.get(request.param, 1)
    written = tokenizers.Tokenizer.from_str(as_library_tokenizer(contents, request.param).to_str())
    return sentencepiece.SentencePieceProcessor(model_proto=contents), written


def same(processor: sentencepiece.SentencePieceProcessor, ids: list[int], expected: list[int]) -> bool:
    """Equal, or equally good to the precision of SentencePiece, which adds scores as fp32 and so decides by rounding
    between the same pieces in several orders, and in a long text between others."""
    if ids == expected:
        return True
    spelled = [[processor.id_to_piece(token) for token in tokens] for tokens in (ids, expected)]
    if "".join(spelled[0]) != "".join(spelled[1]):
        return False
    own, theirs = Counter(ids), Counter(expected)
    if any(reserved(processor, token) for token in ((own - theirs) + (theirs - own)).elements()):
        return False
    total = sum(abs(score_of(processor, token)) for token in expected)
    # Between two places at which both begin a piece, a difference is one decision.
    ends = [[0, *itertools.accumulate(map(len, pieces))] for pieces in spelled]
    shared = sorted(set(ends[0]) & set(ends[1]))
    sums = [dict(zip(places, itertools.accumulate((score_of(processor, token) for token in tokens), initial=0.0),
                     strict=True)) for places, tokens in zip(ends, (ids, expected), strict=True)]  # fmt: skip
    return all(
        abs((sums[0][end] - sums[0][start]) - (sums[1][end] - sums[1][start])) <= total * 2**-22
        for start, end in itertools.pairwise(shared)
    )


def score_of(processor: sentencepiece.SentencePieceProcessor, token: int) -> float:
    """0.1 for each byte of a user-defined symbol but the first, which the model has with the score 0."""
    piece, score = processor.id_to_piece(token), processor.get_score(token)
    return score if score or reserved(processor, token) else 0.1 * (len(piece.encode()) - 1)


PARTS = st.one_of(
    st.integers(1, 9).map(" ".__mul__),
    st.integers(1, 3).map("\n".__mul__),
    st.integers(0, 10**6),
    st.sampled_from([*"\u2603\u2602\u00ff\U0001f600abcx<>", "\t", "\r\n", "\u3002\u4f60\u597d", "<0x41", "e\u0301"]),
    st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=4),
)
"""Numbers stand for a piece of the vocabulary, half of them for a user-defined symbol."""


@cache
def pieces_of(processor: sentencepiece.SentencePieceProcessor) -> tuple[list[str], list[str], list[str]]:
    """Those that are reserved, those in text, and of these the user-defined symbols, or all where it has none."""
    kinds: tuple[list[str], list[str]] = ([], [])
    for token in range(processor.vocab_size()):
        kinds[not reserved(processor, token)].append(processor.id_to_piece(token))
    return *kinds, user_symbols(processor.serialized_model_proto()) or kinds[1]


def text_of(parts: list[str | int], processor: sentencepiece.SentencePieceProcessor) -> str:
    _, in_text, symbols = pieces_of(processor)
    spelled = [(symbols if part % 2 else in_text, part // 2) if isinstance(part, int) else part for part in parts]
    text = "".join(part if isinstance(part, str) else part[0][part[1] % len(part[0])] for part in spelled)
    return text.replace("\u2581", " ")


def reserved(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    return processor.is_control(token) or processor.is_unknown(token) or processor.is_byte(token)


@settings(max_examples=400, deadline=None)
@given(st.lists(PARTS, max_size=14))
def test_any_text_is_split_alike(
    pair: tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer], parts: list[str | int]
) -> None:
    processor, written = pair
    text = text_of(parts, processor)
    # What spells a special token is one in a tokenizer.json; for bytes see below.
    assume(not any(piece in text for piece in pieces_of(processor)[0]))
    expected = processor.encode(text)
    assert same(processor, written.encode(text, add_special_tokens=False).ids, expected)
    if processor.unk_id() not in expected:
        assert written.decode(expected, skip_special_tokens=False) == processor.decode(expected)


def test_text_and_code_are_split_alike(
    pair: tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer],
) -> None:
    """Lines and whole texts: ids are equal but for ties, of which only runs of spaces have any number, where the
    vocabulary was not made for them."""
    processor, written = pair
    files = [path.read_text(encoding="utf-8") for paths, _ in TRAINED.values() for path in paths]
    # What spells a special token is one in a tokenizer.json, whatever the documents and sources write today.
    spelled = re.compile("|".join(map(re.escape, ["\u2581", *pieces_of(processor)[0]])))
    files = [spelled.sub(" ", file) for file in files]
    lines = {line: None for file in files for line in file.splitlines(keepends=True)}
    texts = [*lines, *(file[:4000] for file in files)]
    ties = 0
    for text in texts:
        ids, expected = written.encode(text, add_special_tokens=False).ids, processor.encode(text)
        assert same(processor, ids, expected), text
        ties += ids != expected and "  " not in text
    assert ties < len(texts) / 1000


@pytest.mark.parametrize("name", ["chinese", "python", "no bytes"])
def test_transformers_splits_as_the_library(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.model").write_bytes(contents := trained(name))
    tokenizer = {"kind": "sentencepiece", "path": str(tmp_path / "own.model")}
    run = write_checkpoint(tmp_path / "run", {"family": "llama", "vocab_size": 1500}, tokenizer)
    export_checkpoint(run, tmp_path / "hf")
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    symbols = [symbol.replace("\u2581", " ") for symbol in user_symbols(contents)]
    assert len(symbols) > 2 or name == "chinese"
    spelled = [f"def f():{symbol}return 0x41{symbol}{symbol} # \U0001f600" for symbol in symbols]
    for text in [*TEXT[:200], "".join(TEXT[200:260]), *spelled, "code such as <0x0A> is text"]:
        ids = processor.encode(text)
        assert same(processor, theirs.encode(text, add_special_tokens=False), ids), text
        if processor.unk_id() not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == processor.decode(ids) == text
    assert len(theirs) == processor.vocab_size()

    # Back again, by the tokenizer.json.
    import_directory(tmp_path / "hf", tmp_path / "back")
    ours, back = load_model(run).tokenizer, load_model(tmp_path / "back").tokenizer
    assert back.special == ours.special
    for text in [*TEXT[:50], *spelled, "</s> and <0x0A> are text, and so is <unk>"]:
        assert same(processor, back.encode(text), ours.encode(text)), text


def test_what_spells_a_byte_is_text() -> None:
    """Where the vocabulary has the characters of `<0x41>`, and where it lacks one of them."""
    for name, lacking in (("python", False), ("no bracket", True)):
        contents = trained(name)
        processor = sentencepiece.SentencePieceProcessor(model_proto=contents)
        assert lacking == (processor.unk_id() in {processor.piece_to_id(character) for character in "<0x41>"})
        written = as_library_tokenizer(contents, name)
        for text in ("<0x41>", "a<0x41>b <0x14><0x40>", "\n    <0x41><0x10>"):
            ids = written.encode(text, add_special_tokens=False).ids
            assert ids == processor.encode(text)
            assert written.decode(ids) == text
