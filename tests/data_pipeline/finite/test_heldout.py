"""The evaluation set: every token of every held-out document once, and the bytes to divide by."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.finite.cache import materialise
from data_pipeline.finite.heldout import build_evaluation_set, heldout_documents, training_documents
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.masked import ROLES, MaskedObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import BytesTokenizer, load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts, write_files, write_jsonl, write_lines
from tests.data_pipeline.source_writers import target_of, write
from tests.data_pipeline.tokenizer.vocabularies import bert_file


def targets(batch: Batch) -> list[int]:
    return batch.targets[batch.weights > 0].tolist()


def test_tokens_bytes_and_documents_are_those_of_brute_force(tmp_path: Path) -> None:
    data = config(
        write_files(tmp_path / "a", texts(50)),
        write_jsonl(tmp_path / "b", texts(50, seed=1)),
        holdout=0.3,
        evaluation=[write_lines(tmp_path / "c", texts(9, seed=2))],
    )
    held = list(heldout_documents(data, BytesTokenizer()))
    assert len(held) > 20
    assert {text.split(" ")[0] for text in held} >= {f"2.{i}" for i in range(9)}
    assert not set(held) & set(training_documents(data, BytesTokenizer()))
    found = build_evaluation_set(data, load_tokenizer(bytes_tokenizer(tmp_path)), tmp_path / "cache")
    expected = [token for text in held for token in [*(byte + 3 for byte in text.encode()), 2]]
    assert found.bytes == sum(len(text.encode()) for text in held)
    assert found.documents == len(held)
    assert found.tokens == len(expected)
    assert len(found) == -(-len(expected) // 32)
    whole = found.batch(range(len(found)))
    assert targets(whole) == expected
    # What the model reads before each target is the token before it, eos before the first.
    assert whole.inputs[whole.weights > 0].tolist() == [2, *expected[:-1]]
    assert whole.sample_ids.tolist() == list(range(len(found)))


def test_fill_has_no_weight_and_changes_nothing(tmp_path: Path) -> None:
    data = config(write_files(tmp_path / "a", texts(60)), holdout=0.3)
    found = build_evaluation_set(data, load_tokenizer(bytes_tokenizer(tmp_path)), tmp_path / "cache")
    batch = found.batch([1, -1, len(found), 0])
    assert batch.sample_ids.tolist() == [1, -1, -1, 0]
    assert batch.weights.sum(1).tolist() == [32, 0, 0, 32]
    assert torch.equal(batch.inputs[3], found.batch([0]).inputs[0])
    assert int(batch.inputs.max()) < 259


def test_documents_apart_number_each_target(tmp_path: Path) -> None:
    data = config(write_files(tmp_path / "a", texts(60, longest=3)), holdout=0.5)
    apart = CausalObjective(separate_documents=True)
    found = build_evaluation_set(data, load_tokenizer(bytes_tokenizer(tmp_path)), tmp_path / "cache", objective=apart)
    whole = found.batch(range(len(found) - 1))
    # A target's document has as many ends before it as the stream had, counted anew in each sample.
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), (whole.targets.flatten() == 2).cumsum(0)[:-1]])
    expected = ends.view(len(found) - 1, 32)
    assert whole.segment_ids is not None
    assert torch.equal(whole.segment_ids, expected - expected[:, :1])
    plain = build_evaluation_set(data, load_tokenizer(bytes_tokenizer(tmp_path)), tmp_path / "cache").batch([0])
    assert plain.segment_ids is None


def test_pairs_are_predicted_from_their_sources(tmp_path: Path) -> None:
    source = write("jsonl", tmp_path / "a", texts(20, longest=3), pairs=True)
    objective = Seq2SeqObjective(target_length=24, concatenate=True)
    directory = tmp_path / "tokenizer"
    data = config(source, evaluation=[source])
    prepare_tokenizer(data, directory)
    found = build_evaluation_set(data, load_tokenizer(directory), tmp_path / "cache", objective=objective)
    targets_of = [target_of(document.text) for document in Corpus.training(data).documents()]
    assert (len(found), found.documents) == (20, 20)
    assert found.bytes == sum(len(text.encode()) for text in targets_of)
    assert found.tokens == sum(len(text.encode()) + 1 for text in targets_of)
    row = found.batch([3])
    assert bytes(token - 3 for token in targets(row)[:-1]).decode() == targets_of[3]


def test_sentence_pairs_hold_text_alone(tmp_path: Path) -> None:
    vocabulary = bert_file(tmp_path / "bert")
    written = texts(40)
    source = write_lines(tmp_path / "a", written)
    data = config(
        source,
        evaluation=[source],
        tokenizer={"kind": "wordpiece", "path": str(vocabulary)},
        sequence_length=25,
    )
    prepare_tokenizer(data, tmp_path / "tokenizer", roles=ROLES)
    pairs = build_evaluation_set(
        data, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "c", objective=MaskedObjective(next_sentence=True)
    )
    batch = pairs.batch(range(len(pairs)))
    reference = tokenizers.BertWordPieceTokenizer(str(vocabulary))
    separator = reference.token_to_id("[SEP]")
    documents = [reference.encode(text, add_special_tokens=False).ids for text in written]
    # Half a sample of 22 tokens at a time, and what is left; every one is the first part of one sample.
    chunks = sorted(ids[start : start + 11] for ids in documents for start in range(0, len(ids), 11))
    assert batch.encoder_weights is not None
    sizes = batch.encoder_weights.sum(1).long().tolist()
    rows = [row[:size].tolist() for row, size in zip(batch.targets, sizes, strict=True)]
    assert all(row.count(separator) == 2 and row[-1] == separator for row in rows)
    assert sorted(row[1 : row.index(separator)] for row in rows) == chunks


def test_tokens_that_were_held_out_are_evaluated_as_their_text(tmp_path: Path) -> None:
    text = config(write_files(tmp_path / "a", texts(60)), holdout=0.3)
    tokenizer = bytes_tokenizer(tmp_path)
    expected = build_evaluation_set(text, load_tokenizer(tokenizer), tmp_path / "cache")
    documents = Corpus.training(text).documents(held_out=True)
    materialise(documents, BytesTokenizer(), tmp_path / "heldout", digest="x")
    tokens = config({"kind": "tokens", "paths": [f"{tmp_path}/heldout"]})
    tokens = tokens.model_copy(update={"evaluation": tokens.sources})
    found = build_evaluation_set(tokens, load_tokenizer(tokenizer), tmp_path / "other")
    assert (found.bytes, found.tokens, found.documents) == (expected.bytes, expected.tokens, expected.documents)
    assert targets(found.batch(range(len(found)))) == targets(expected.batch(range(len(expected))))
    with pytest.raises(UserError, match=r"data.holdout is 0.2, but tokens cannot be held out any more"):
        build_evaluation_set(tokens.model_copy(update={"holdout": 0.2}), load_tokenizer(tokenizer), tmp_path / "other")


def test_it_is_written_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(write_files(tmp_path / "a", texts(60)), holdout=0.3)
    tokenizer = bytes_tokenizer(tmp_path)
    first = build_evaluation_set(data, load_tokenizer(tokenizer), tmp_path / "cache")
    monkeypatch.setattr("data_pipeline.finite.heldout._write", lambda *_: pytest.fail("written again"))
    again = build_evaluation_set(
        data.model_copy(update={"sequence_length": 16}), load_tokenizer(tokenizer), tmp_path / "cache"
    )
    assert targets(again.batch(range(len(again)))) == targets(first.batch(range(len(first))))
    monkeypatch.undo()
    (tmp_path / "a" / "part0" / "000.txt").write_text("changed")
    build_evaluation_set(data, load_tokenizer(tokenizer), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(tmp_path)
    source = write_files(tmp_path / "a", texts(5))
    with pytest.raises(UserError, match=r"data.holdout is 0 and data.evaluation is empty"):
        build_evaluation_set(config(source), load_tokenizer(tokenizer), tmp_path / "cache")
    with pytest.raises(UserError, match=r"raise data.holdout"):
        build_evaluation_set(config(source, holdout=1e-9), load_tokenizer(tokenizer), tmp_path / "cache")
    with pytest.raises(UserError, match=r"data.evaluation\[0\].paths: no file matches"):
        build_evaluation_set(
            config(source, evaluation=[{"paths": ["/none/x"]}]), load_tokenizer(tokenizer), tmp_path / "cache"
        )
    data = config(source, evaluation=[{"paths": ["/none/x"]}])
    with pytest.raises(UserError, match=r"--data\[0\].paths: no file matches"):
        build_evaluation_set(data, load_tokenizer(tokenizer), tmp_path / "cache", where="--data")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
