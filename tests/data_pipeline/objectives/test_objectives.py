"""Objectives against the definitions of their papers, worked out the slow way."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import choose, uniforms
from data_pipeline.batch import make_batch
from data_pipeline.finite.samples import make_view
from data_pipeline.finite.shards import Shards
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives import Objective, build_objective
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.denoising import DenoisingObjective
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.objectives.packing import Piece, Sample
from data_pipeline.objectives.prefix import PrefixObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.open_samples import open_samples
from data_pipeline.tokenizer import prepare_tokenizer
from tests.data_pipeline.corpora import config, texts, write_jsonl

EOS = 2


class ByteTokens:
    """All that objectives look at of a tokenizer: bytes, then a token for every role; a word begins at a space."""

    def __init__(self, roles: Sequence[str]) -> None:
        own = {"pad": 0, "bos": 1, "eos": EOS}
        missing = [role for role in roles if role not in own]
        self.special = {**own, **{role: 259 + i for i, role in enumerate(missing)}}
        self.vocab_size = 259 + len(missing)

    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        return ids == ord(" ") + 3


def make(config: ObjectiveConfig, length: int, seed: int = 0) -> tuple[Objective, ByteTokens]:
    tokenizer = ByteTokens(config.roles(length))
    return build_objective(config, tokenizer, length, seed), tokenizer  # type: ignore[arg-type]


def window(length: int, *documents: int, seed: int = 0) -> Sample:
    """`length` random bytes, with spaces, in documents of these lengths, each ending in eos; the last one is cut."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, 259, length).astype(np.int32)
    tokens[draw.random(length) < 0.2] = ord(" ") + 3
    edges = [edge for edge in np.cumsum(documents) if edge <= length]
    tokens[[edge - 1 for edge in edges]] = EOS
    bounds = [0, *[edge for edge in edges if edge < length], length]
    pieces = [Piece(i, 0, i, 0, b - a) for i, (a, b) in enumerate(itertools.pairwise(bounds))]
    return Sample(tokens, tuple(pieces))


def test_uniform_numbers_are_uniform_and_depend_on_the_key_alone() -> None:
    draws = np.concatenate([uniforms(1000, "a", key) for key in range(200)])
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 160  # chi-square, 99 degrees of freedom
    assert 0 <= draws.min() < draws.max() < 1
    assert np.array_equal(uniforms(10, "a", 3), uniforms(1000, "a", 3)[:10])
    assert not np.intersect1d(uniforms(100, "a", 3), uniforms(100, "b", 3)).size
    picked = collections.Counter(tuple(choose(2, 4, key).tolist()) for key in range(6000))
    assert len(picked) == math.comb(4, 2)
    assert all(850 < count < 1150 for count in picked.values())


@pytest.mark.parametrize("length", [64, 100, 128, 256, 512, 1000, 2048])
def test_denoising_lengths_are_those_of_t5(length: int) -> None:
    """The longest window that fits, by T5's formula; 512 tokens of the encoder come from 568 and give 114."""

    def sizes(tokens: int) -> tuple[int, int]:
        cut = round(tokens * 0.15)
        spans = round(cut / 3.0)
        return tokens - cut + spans + 1, cut + spans + 1

    fits = max(tokens for tokens in range(length, 2 * length) if sizes(tokens)[0] <= length)
    objective, _ = make(DenoisingObjective(), length)
    assert (objective.length, objective.targets_per_sample) == (fits, sizes(fits)[1])
    assert length != 512 or (fits, sizes(fits)[1]) == (568, 114)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(8, 300), rate=st.floats(0.05, 0.9), mean=st.floats(1, 12), seed=st.integers(0, 99),
    shorter=st.integers(0, 40),
)  # fmt: skip
def test_cut_spans_put_back_give_the_text(length: int, rate: float, mean: float, seed: int, shorter: int) -> None:
    objective, tokenizer = make(DenoisingObjective(rate=rate, mean_span=mean), length, seed)
    sample = window(max(1, objective.length - shorter), 50, 60, seed=seed)
    batch = make_batch(objective.arrays([sample], [seed]), np.array([seed]))
    assert batch.encoder_inputs is not None
    assert batch.encoder_weights is not None
    sentinels = {token: i for role, token in tokenizer.special.items() if role.startswith("sentinel") for i in [role]}
    left = [int(t) for t, w in zip(batch.encoder_inputs[0], batch.encoder_weights[0], strict=True) if w]
    right = [int(t) for t, w in zip(batch.targets[0], batch.weights[0], strict=True) if w]
    assert left[-1] == right[-1] == EOS
    assert batch.inputs[0].tolist() == [tokenizer.special["pad"], *batch.targets[0].tolist()[:-1]]
    spans: dict[str, list[int]] = {}
    for token in right[:-1]:
        if token in sentinels:
            name = sentinels[token]
            spans[name] = []
        else:
            spans[name].append(token)
    assert list(spans) == [f"sentinel_{i}" for i in range(len(spans))]
    back = [t for token in left[:-1] for t in (spans[sentinels[token]] if token in sentinels else [token])]
    assert back == sample.tokens.tolist()
    assert all(spans.values())
    cut, total = sum(map(len, spans.values())), len(sample.tokens)
    assert total < 2 or cut == min(max(round(total * rate), 1), total - 1)


def test_cut_spans_have_the_published_mean_and_lie_anywhere() -> None:
    objective, tokenizer = make(DenoisingObjective(), 512)
    sample = window(objective.length, 9999)
    arrays = objective.arrays([sample] * 400, range(400))
    sentinel = np.isin(arrays["targets"], [v for k, v in tokenizer.special.items() if k.startswith("sentinel")])
    cut = (arrays["weights"].sum() - sentinel.sum() - 400) / sentinel.sum()
    assert cut == pytest.approx(3.0, abs=0.05)
    where = np.isin(arrays["encoder_inputs"], [v for k, v in tokenizer.special.items() if k.startswith("sentinel")])
    thirds = [part.sum() for part in np.array_split(where, 4, axis=1)]
    assert max(thirds) / min(thirds) < 1.2


@pytest.mark.parametrize("whole_words", [False, True])
def test_masking_hides_fifteen_percent_as_bert_does(whole_words: bool) -> None:
    objective, tokenizer = make(MaskedObjective(whole_words=whole_words), 128)
    samples = [window(126, 50, 60, seed=i) for i in range(300)]
    batch = make_batch(objective.arrays(samples, range(300)), np.arange(300))
    chosen = batch.weights == 1
    hidden, random_share, kept = 0, 0, 0
    for sample, inputs, targets, weights in zip(samples, batch.inputs, batch.targets, chosen, strict=True):
        frame = [tokenizer.special["cls"], *sample.tokens.tolist(), tokenizer.special["sep"]]
        assert targets.tolist() == frame
        assert not weights[[0, -1]].any()
        assert inputs[~weights].tolist() == targets[~weights].tolist()
        assert not (weights & (targets == EOS)).any()
        text = sum(token != EOS for token in sample.tokens.tolist())
        share = weights.sum() / text
        assert share == pytest.approx(0.15, abs=0.01) if not whole_words else share > 0
        hidden += int((inputs[weights] == tokenizer.special["mask"]).sum())
        kept += int((inputs[weights] == targets[weights]).sum())
        random_share += int(((inputs[weights] != tokenizer.special["mask"]) & (inputs != targets)[weights]).sum())
    total = hidden + kept + random_share
    assert [hidden / total, random_share / total, kept / total] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    positions = chosen.sum(0)[1:-1].float()
    assert float(positions.std() / positions.mean()) < 0.35


def test_whole_words_are_hidden_whole() -> None:
    objective, _ = make(MaskedObjective(whole_words=True, rate=0.4), 42)
    text = b"a bb ccc dddd eeeee ffffff ggggggg hhhhh"
    sample = Sample(np.frombuffer(text, np.uint8).astype(np.int32) + 3, (Piece(0, 0, 0, 0, len(text)),))
    for k in range(50):
        weights = objective.arrays([sample], [k])["weights"][0, 1:-1].astype(bool)
        words, at = text.split(b" "), 0
        assert 1 <= weights.sum() <= round(0.4 * len(text))
        for i, word in enumerate(words):
            part = weights[at : at + len(word) + (i > 0)]
            assert part.all() or not part.any()
            at += len(part)


def test_sentence_pairs_are_framed_and_labelled() -> None:
    objective, tokenizer = make(MaskedObjective(next_sentence=True), 32)
    first, second = np.arange(10, 20, dtype=np.int32), np.arange(30, 37, dtype=np.int32)
    sample = Sample(np.concatenate([first, second]), (Piece(0, 0, 0, 1, 10), Piece(1, 0, 1, 1, 7)), 10, 1)
    batch = make_batch(objective.arrays([sample], [7]), np.array([7]))
    cls, sep = tokenizer.special["cls"], tokenizer.special["sep"]
    assert batch.targets[0].tolist()[:20] == [cls, *first.tolist(), sep, *second.tolist(), sep]
    assert batch.segment_ids is not None
    assert batch.encoder_weights is not None
    assert batch.segment_ids[0].tolist() == [0] * 12 + [1] * 8 + [0] * 12
    assert batch.encoder_weights[0].tolist() == [1] * 20 + [0] * 12
    assert batch.labels["next_sentence"].tolist() == [1]


@pytest.mark.parametrize("suffix_first", [0.0, 1.0])
def test_a_filled_middle_reads_back_to_the_document(suffix_first: float) -> None:
    config = CausalObjective(fim_rate=0.5, fim_suffix_first_rate=suffix_first)
    objective, tokenizer = make(config, 120)
    begin, mid, end = (tokenizer.special[f"fim_{name}"] for name in ("prefix", "middle", "suffix"))
    rearranged = 0
    for k in range(200):
        sample = window(121, 40, 30, seed=k)
        row = objective.arrays([sample], [k])["tokens"][0].tolist()
        assert len(row) == 121
        parts, documents = _split(row, EOS), _split(sample.tokens.tolist(), EOS)
        for part, document in zip(parts[:2], documents[:2], strict=True):
            if begin not in part:
                assert part == document
                continue
            rearranged += 1
            if suffix_first:
                assert part[:2] == [begin, end]
                suffix, rest = part[2 : part.index(mid)], part[part.index(mid) + 1 :]
                assert rest + suffix == document
            else:
                prefix, suffix = part[1 : part.index(end)], part[part.index(end) + 1 : part.index(mid)]
                assert prefix + part[part.index(mid) + 1 :] + suffix == document
    assert rearranged == pytest.approx(200, abs=40)


def _split(tokens: list[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token == at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_a_prefix_is_read_and_not_predicted() -> None:
    objective, _ = make(PrefixObjective(least_share=0.25), 40)
    samples = [window(41, 99, seed=i) for i in range(200)]
    batch = make_batch(objective.arrays(samples, range(200)), np.arange(200))
    assert batch.prefix_lengths is not None
    for row, prefix in zip(batch.weights.tolist(), batch.prefix_lengths.tolist(), strict=True):
        assert row == [0.0] * (prefix - 1) + [1.0] * (41 - prefix)
    assert {int(n) for n in batch.prefix_lengths} == set(range(10, 30))


def test_pairs_for_an_encoder_and_for_a_decoder() -> None:
    source, target = np.arange(10, 16, dtype=np.int32), np.arange(50, 54, dtype=np.int32)
    sample = Sample(np.concatenate([source, target]), (Piece(0, 0, 0, 1, 10),), 6)
    objective, tokenizer = make(Seq2SeqObjective(target_length=8), 10)
    pad = tokenizer.special["pad"]
    batch = make_batch(objective.arrays([sample], [0]), np.array([0]))
    assert batch.encoder_inputs is not None
    assert batch.encoder_inputs[0].tolist() == [*source.tolist(), EOS, pad, pad, pad]
    assert batch.targets[0].tolist() == [*target.tolist(), EOS, pad, pad, pad]
    assert batch.inputs[0].tolist() == [pad, *target.tolist(), EOS, pad, pad]
    assert batch.weights[0].tolist() == [1] * 5 + [0] * 3
    objective, _ = make(Seq2SeqObjective(target_length=3, concatenate=True), 5)
    batch = make_batch(objective.arrays([sample], [0]), np.array([0]))
    rows = zip(batch.inputs[0].tolist(), batch.targets[0].tolist(), batch.weights[0].tolist(), strict=True)
    counted = [(read, given) for read, given, weight in rows if weight]
    assert counted == [(EOS, 50), (50, 51), (51, EOS)]
    assert batch.inputs[0].tolist()[:5] == [10, 11, 12, 13, EOS]


def test_pairs_of_tokenised_documents_lose_nothing(tmp_path: Path) -> None:
    """With eos behind each text, and as Megatron-LM writes them unless it is asked to: without."""
    texts = [[10, 11, 12], [50, 51], [13], [52, 53, 54]]
    objective, _ = make(Seq2SeqObjective(target_length=8), 10)
    for name, ends in (("ended", [EOS]), ("bare", [])):
        with IndexedWriter(tmp_path / name, np.dtype("int32")) as writer:
            writer.add([np.array([*text, *ends]) for text in texts])
    view = make_view(Shards([tmp_path / "ended", tmp_path / "bare"]), objective, 0)
    found = [view.sample(index, index) for index in range(4)]
    assert [(sample.tokens.tolist(), sample.split) for sample in found] == [
        ([10, 11, 12, 50, 51], 3),
        ([13, 52, 53, 54], 1),
    ] * 2


OBJECTIVES: list[Any] = [
    CausalObjective(fim_rate=0.5, separate_documents=True),
    PrefixObjective(),
    MaskedObjective(whole_words=True),
    DenoisingObjective(),
]


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda config: config.name)
def test_rows_depend_on_seed_and_number_and_not_on_their_neighbours(config: ObjectiveConfig) -> None:
    objective, _ = make(config, 64, seed=3)
    samples = [window(objective.length, 30, 12, seed=i) for i in range(6)]
    together = objective.arrays(samples, range(6))
    for i, sample in enumerate(samples):
        alone = objective.arrays([sample], [i])
        for name, rows in together.items():
            assert np.array_equal(rows[i], alone[name][0])
    other = make(config, 64, seed=4)[0].arrays(samples, range(6))
    again = objective.arrays(samples, range(6, 12))
    assert any(not np.array_equal(together[name], other[name]) for name in together)
    assert any(not np.array_equal(together[name], again[name]) for name in together)


@pytest.mark.parametrize("config", [MaskedObjective(), MaskedObjective(whole_words=True), MaskedObjective(rate=0.6)])
def test_what_is_hidden_does_not_depend_on_longer_neighbours(config: MaskedObjective) -> None:
    objective, _ = make(config, 256, seed=3)
    samples = [window(size, seed=size) for size in (objective.length, 9, 100, 31)]
    together = objective.arrays(samples, range(4))
    assert len(set(together["weights"].sum(axis=1))) == 4
    for i, sample in enumerate(samples):
        alone = objective.arrays([sample], [i])
        for name, rows in together.items():
            assert np.array_equal(rows[i], alone[name][0]), (name, i)


LEAST: list[tuple[ObjectiveConfig, int]] = [
    (CausalObjective(), 1),
    (CausalObjective(separate_documents=True), 1),
    (CausalObjective(fim_rate=0.5), 1),
    (PrefixObjective(), 1),
    (MaskedObjective(), 3),
    (MaskedObjective(whole_words=True), 3),
    (MaskedObjective(next_sentence=True), 5),
    (DenoisingObjective(), 3),
]


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(("objective", "least"), LEAST)
def test_samples_of_few_tokens_or_a_refusal(tmp_path: Path, objective: ObjectiveConfig, least: int, order: str) -> None:
    source = write_jsonl(tmp_path / "data", texts(60))
    for length in range(1, 8):
        data = config(source, sequence_length=length, order=order)
        tokenizer = prepare_tokenizer(data, tmp_path / str(length), roles=objective.roles(length))
        if length < least:
            with pytest.raises(UserError, match=rf"sequence_length is {length}, but objective .* needs {least} at"):
                open_samples(data, tokenizer, objective, seed=1, cache=tmp_path / "cache")
            continue
        samples = open_samples(data, tokenizer, objective, seed=1, cache=tmp_path / "cache")
        arrays = samples.make(range(24)).arrays
        assert "weights" not in arrays or (arrays["weights"].sum(axis=1) >= 1).all()
