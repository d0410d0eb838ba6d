"""Deduplication against exact Jaccard similarities and first occurrences worked out the slow way."""

from __future__ import annotations

import importlib
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import DeduplicationConfig
from data_pipeline.document import Document
from data_pipeline.finite.format import IndexedDataset
from data_pipeline.prepare import deduplication
from data_pipeline.prepare.deduplication import (
    DUPLICATES,
    Signer,
    find_duplicates,
    refuse_deduplication_of_a_stream,
    shingle_hashes,
    signature_type,
    without_duplicates,
)
from data_pipeline.prepare.prepare import prepare
from data_pipeline.sources.corpus import Corpus
from tests.data_pipeline.corpora import config, write_jsonl

EXACT = DeduplicationConfig()
NEAR = DeduplicationConfig(near={"threshold": 0.8})


def numbered(texts: list[str]) -> list[Document]:
    return [Document(1000 + i, i % 3, i, text) for i, text in enumerate(texts)]


def deduplicated(texts: list[str], settings: DeduplicationConfig, parts: int = 1) -> tuple[list[str], Counter[str]]:
    """What stays of some texts, signed and filtered in so many parts."""
    documents = numbered(texts)
    edges = [len(documents) * i // parts for i in range(parts + 1)]
    shares = [documents[start:stop] for start, stop in itertools.pairwise(edges)]
    found = find_duplicates([Signer(settings).sign(share) for share in shares], settings)
    dropped: Counter[str] = Counter()
    kept = [d for share, mine in zip(shares, found, strict=True) for d in without_duplicates(share, mine, dropped)]
    assert len(kept) + sum(dropped.values()) == len(texts)
    return [document.text for document in kept], dropped


# Exact


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n\t\u3000é", max_size=4) | st.sampled_from(["e\u0301", "é", "中文"]), max_size=30))
def test_exact_duplicates_are_all_but_the_first(texts):
    seen: set[str] = set()
    expected = []
    for text in texts:
        key = " ".join(text.replace("e\u0301", "é").split())
        expected += [] if key in seen else [text]
        seen.add(key)
    for parts in (1, 3):
        assert deduplicated(texts, EXACT, parts) == (
            expected,
            Counter({"exact duplicate": len(texts) - len(expected)} if len(texts) > len(expected) else {}),
        )


def test_pairs_are_duplicates_only_with_the_same_target():
    documents = [
        Document(1, 0, 0, "text", "one"),
        Document(2, 0, 1, "text", "two"),
        Document(3, 0, 2, "text", " one"),
        Document(4, 0, 3, "text one"),
    ]
    (found,) = find_duplicates([Signer(EXACT).sign(documents)], EXACT)
    assert found.tolist() == [(0, 2, False)]


def test_case_and_punctuation_are_no_exact_duplicates_but_near_ones():
    texts = ["One, two, three four five six!", "one two three four five six", "一、二，三。四五六七", "一二三四五六七"]
    assert deduplicated(texts, EXACT) == (texts, Counter())
    assert deduplicated(texts, NEAR) == (texts[::2], Counter({"near duplicate": 2}))


# Near


def slow_shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    """For lower-case words between spaces and Chinese characters, without punctuation."""
    words: list[str] = []
    for piece in text.split():
        words += piece if ord(piece[0]) >= 0x4E00 else [piece]
    width = min(ngram, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} if words else set()


def jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b)


ENGLISH = [f"word{i}" for i in range(500)]
CHINESE = [chr(0x4E00 + i) for i in range(500)]


def versions(units: list[str], joint: str, seed: int) -> list[str]:
    """Documents of 200 units: some originals, each followed by changed copies of all degrees of likeness."""
    draw = random.Random(seed)
    texts = []
    for _ in range(40):
        original = draw.choices(units, k=200)
        texts.append(joint.join(original))
        for changes in (0, 1, 2, 3, 4, 5, 7, 10, 20):
            copy = list(original)
            for place in draw.sample(range(200), changes):
                copy[place] = draw.choice(units)
            texts.append(joint.join(copy))
    return texts


@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_near_duplicates_have_the_similarity_asked_for(language):
    texts = versions(ENGLISH if language == "English" else CHINESE, " " if language == "English" else "", 7)
    sets = [slow_shingles(text, 5) for text in texts]
    kept = set(deduplicated(texts, NEAR)[0])
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    staying = sorted(first[text] for text in kept)
    likeness = {i: max((jaccard(sets[i], sets[k]) for k in staying if k < i), default=0.0) for i in first.values()}
    dropped = set(likeness) - set(staying)
    # The standard error of the estimate at 0.8 is 0.035 with 128 permutations.
    assert all(likeness[i] > 0.8 - 4 * 0.035 for i in dropped), "precision"
    assert sum(likeness[i] >= 0.8 for i in dropped) / len(dropped) > 0.85
    clear = [i for i, value in likeness.items() if value >= 0.9]
    assert len(clear) >= 80
    assert sum(i in dropped for i in clear) / len(clear) > 0.95, "recall"
    assert all(i in staying for i, value in likeness.items() if value < 0.6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "cc", "中", "文", "d1"]), max_size=25), st.integers(1, 6))
def test_there_is_one_hash_for_each_shingle(words, ngram):
    text = " ".join(words)
    assert len(shingle_hashes(text, ngram)) == len(slow_shingles(text, ngram))
    assert shingle_hashes(f"«{text.upper()}!»", ngram).tolist() == shingle_hashes(text, ngram).tolist()


def test_signatures_estimate_the_jaccard_similarity():
    texts = versions(ENGLISH, " ", 3)[:60]
    many = DeduplicationConfig(near={"permutations": 1024, "ngram": 3})
    signatures = Signer(many).sign(numbered(texts))["near"]
    for i, k in itertools.combinations(range(0, 60, 3), 2):
        true = jaccard(slow_shingles(texts[i], 3), slow_shingles(texts[k], 3))
        assert (signatures[i] == signatures[k]).mean() == pytest.approx(true, abs=5 * (0.25 / 1024) ** 0.5)


def test_texts_without_words_are_never_near_duplicates():
    texts = ["!!!", "...", "?", "", "—— ……"]
    assert deduplicated(texts, NEAR) == (texts, Counter())


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_found_depends_neither_on_the_parts_nor_on_the_index_holding_all(exact, tmp_path, monkeypatch):
    texts = versions(ENGLISH, " ", 1)[:150] + versions(CHINESE, "", 2)[:150]
    random.Random(0).shuffle(texts)
    settings = DeduplicationConfig(exact=exact, near={"threshold": 0.7})
    expected = deduplicated(texts, settings)
    assert len(expected[0]) < 200
    for parts in (2, 7, 300):
        assert deduplicated(texts, settings, parts) == expected
    paths = []
    for i, share in enumerate(np.array_split(Signer(settings).sign(numbered(texts)), 4)):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], share, allow_pickle=False)
    arrays = [np.load(path) for path in paths]
    for found, again in zip(find_duplicates(paths, settings), find_duplicates(arrays, settings), strict=True):
        assert found.dtype == DUPLICATES
        assert found.tolist() == again.tolist()
    # Every document in the index, instead of only those that share a band.
    monkeypatch.setattr(deduplication, "_band_keys", lambda band: np.zeros(len(band), np.uint64))
    assert deduplicated(texts, settings) == expected


def test_a_chain_of_changes_is_cut_where_the_likeness_to_what_stays_ends():
    draw = random.Random(5)
    words = draw.choices(ENGLISH, k=200)
    chain = []
    for step in range(30):
        chain.append(" ".join(words))
        words[(step * 37) % 200] = f"new{step}"
    kept, _ = deduplicated(chain, NEAR)
    sets = {text: slow_shingles(text, 5) for text in chain}
    assert 2 < len(kept) < 15
    assert all(jaccard(sets[a], sets[b]) < 0.9 for a, b in itertools.combinations(kept, 2))


def test_documents_with_too_many_candidates_stay_out_of_the_index(monkeypatch):
    """A bounded index, and exactly the documents that are compared with those in it are dropped."""
    monkeypatch.setattr(deduplication, "MOST_CANDIDATES", 3)
    draw = random.Random(2)
    shared = draw.choices(ENGLISH, k=150)
    texts = [" ".join(shared + [f"own{i}.{k}" for k in range(70)]) for i in range(40)]
    settings = DeduplicationConfig(near={"threshold": 0.8})
    assert deduplicated(texts + texts[:1], settings)[1] == {"exact duplicate": 1}
    kept, dropped = deduplicated([*texts, texts[0] + " end"], settings)
    assert (len(kept), dropped) == (40, {"near duplicate": 1})


def test_no_documents_and_empty_parts():
    for asked in (EXACT, NEAR):
        empty = Signer(asked).sign([])
        assert empty.dtype == signature_type(asked)
        assert find_duplicates([], asked) == []
        one = Signer(asked).sign(numbered(["x y z"]))
        assert [len(found) for found in find_duplicates([empty, one, empty, one], asked)] == [0, 0, 0, 1]


# Settings


def test_settings_that_drop_nothing_and_impossible_thresholds_are_refused():
    with pytest.raises(ValidationError, match="exact is false and near is not given"):
        DeduplicationConfig(exact=False)
    with pytest.raises(ValidationError, match=r"less than or equal to 0\.95"):
        DeduplicationConfig(near={"threshold": 1})


def test_a_stream_refuses_deduplication_and_names_the_command():
    source = {"kind": "text", "paths": ["x"]}
    refuse_deduplication_of_a_stream(config(source))
    with pytest.raises(UserError, match=r"^data\.deduplication needs the whole corpus.*llmscale data prepare.*\S$"):
        refuse_deduplication_of_a_stream(config(source, deduplication={"exact": True}))


def test_a_missing_library_is_named_with_the_fix(monkeypatch):
    def without(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    Signer(EXACT)
    with pytest.raises(
        UserError, match=r"needs datasketch, which is not installed; run pip install 'llmscale\[clean\]'"
    ):
        Signer(NEAR)


# In `prepare`


def prepared_documents(out: Path) -> list[str]:
    """Documents of the training side, byte tokens turned back into text, without their end-of-text token."""
    data = IndexedDataset(out / "train")
    token_lists = [data.document(i).tolist() for i in range(data.document_count)]
    return [bytes(token - 3 for token in tokens[:-1]).decode() for tokens in token_lists]


def file_contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.[bip]*")}


def test_prepare_drops_the_same_documents_on_any_number_of_processes_and_ranks(tmp_path):
    originals = versions(ENGLISH, " ", 1)[:60] + versions(CHINESE, "", 2)[:60]
    texts = originals + originals[::3]
    random.Random(4).shuffle(texts)
    source = write_jsonl(tmp_path / "data", texts, files=3)
    settings = config(
        source,
        span_bytes=10_000,
        cleaning=[{"step": "length", "min": 100}],
        deduplication={"near": {"threshold": 0.7}},
        holdout=0.2,
    )
    single = prepare(settings, tmp_path / "single", part_bytes=30_000).meta
    assert single is not None
    prepare(settings, tmp_path / "double", part_bytes=30_000, processes=2)
    for rank in (2, 0, 1, 2, 0):  # those that end before all have signed are run again
        prepare(settings, tmp_path / "ranks", part_bytes=30_000, rank=rank, world=3)
    expected = file_contents(tmp_path / "single")
    assert len(expected) >= 4
    assert file_contents(tmp_path / "double") == expected
    assert file_contents(tmp_path / "ranks") == expected

    whole = list(Corpus.training(settings.model_copy(update={"holdout": 0.0})).documents())
    asked = settings.deduplication
    assert asked is not None
    (found,) = find_duplicates([Signer(asked).sign(whole)], asked)
    dropped: Counter[str] = Counter()
    staying = list(without_duplicates(whole, found, dropped))
    held_out = {document.id for document in Corpus.training(settings).documents(held_out=True)}
    assert prepared_documents(tmp_path / "single") == [d.text for d in staying if d.id not in held_out]
    assert {reason: single["dropped"][reason] for reason in dropped} == dropped
    assert min(dropped["exact duplicate"], dropped["near duplicate"]) > 10
