"""Texts and labels to samples: the frame beside transformers' BERT tokenizer, labels beside the records, wrong labels
with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.classification import ClassificationObjective
from data_pipeline.objectives.packing import Sample, stored_value
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer

SINGLE = ClassificationObjective(labels=["bad", "good", "1"])
WORDS = ["the", "film", "was", "good", "bad", "a", "very", "long", "story"]


def config_of(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataConfig:
    """Data of some rows, in a file of JSON lines."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "paths": [str(path)], "fields": {"label": "sentiment"}, **changes.pop("source", {})}
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": 24, "lanes": 1, "shuffle_buffer": 1, **changes}
    return DataConfig.model_validate({"sources": [source], **settings})


def tokenizer_of(config: DataConfig, folder: Path, objective: ClassificationObjective) -> Tokenizer:
    return prepare_tokenizer(config, folder / "tokenizer", roles=objective.roles(config.sequence_length))


@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_those_of_a_bert_tokenizer(pair: bool, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    settings = {"kind": "wordpiece", "path": str(vocabulary)}
    config = config_of(tmp_path, [{"text": "a", "sentiment": "bad"}], tokenizer=settings, sequence_length=10)
    ours = tokenizer_of(config, tmp_path, SINGLE)
    theirs = transformers.BertTokenizer(str(vocabulary))
    objective = SINGLE.build(ours, 10, 0)
    draw = np.random.default_rng(3)
    firsts, seconds = ([" ".join(draw.choice(WORDS, size)) for size in sizes] for sizes in ((2, 9, 4, 1), (3, 2, 8, 1)))
    expected = theirs(
        firsts, seconds if pair else None, padding="max_length", max_length=10, truncation="longest_first"
    )
    samples = []
    for first, second in zip(firsts, seconds, strict=True):
        others = [ours.encode(second)] if pair else []
        tokens = ours.encode(first)
        whole = np.concatenate([tokens, *others])
        samples.append(Sample(whole, (), len(tokens), values=(stored_value("good"),)))
    arrays = objective.arrays(samples, range(4))
    assert arrays["inputs"].tolist() == expected["input_ids"]
    assert arrays["segment_ids"].tolist() == expected["token_type_ids"]
    assert arrays["encoder_weights"].tolist() == expected["attention_mask"]


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    ("objective", "values", "expected"),
    [
        (SINGLE, ["good", 1, "bad"], [1, 2, 0]),
        (
            ClassificationObjective(labels=["x", "y"], problem="multi_label", pooling="last"),
            [["y"], [], ["x", "y"]],
            [[0, 1], [0, 0], [1, 1]],
        ),
        (
            ClassificationObjective(labels=["stars"], problem="regression", pooling="mean"),
            [2.5, [-1], "3"],
            [[2.5], [-1], [3]],
        ),
    ],
)
def test_each_text_has_its_label(
    order: str, objective: ClassificationObjective, values: list[Any], expected: list[Any], tmp_path: Path
) -> None:
    """Of whatever type the labels are, on both ways to read, and in the held-out set."""
    texts = ["one", "two words", "three"]
    rows = [{"text": text, "sentiment": value} for text, value in zip(texts, values, strict=True)]
    config = config_of(tmp_path, rows, order=order)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, objective)
    with TrainLoader(
        config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache"
    ) as loader:
        batch, _ = loader.take(6)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    special = set(tokenizer.special.values())
    for each in (batch, held.batch([0, 1, 2])):
        for inputs, label in zip(each.inputs.tolist(), each.labels["classification"].tolist(), strict=True):
            text = tokenizer.decode(np.array([token for token in inputs if token not in special]))
            assert label == expected[texts.index(text)]
        assert each.weights.tolist() == [[1.0]] * each.size
    fill = held.batch([0, -1])
    assert fill.weights.tolist() == [[1.0], [0.0]]
    label = fill.labels["classification"][1]
    assert bool((label == -1).all() if objective is SINGLE else label.isnan().all())


MULTI = ClassificationObjective(labels=["x", "y"], problem="multi_label")
NUMBER = ClassificationObjective(labels=["stars"], problem="regression")


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    ("objective", "value", "words"),
    [
        (SINGLE, "fine", "the label is 'fine', but objective.labels has 'bad', 'good', '1'; correct the record"),
        (SINGLE, "Good ", "'1' ('good' differs by case, spaces or decimals alone); correct the record"),
        (SINGLE, 1.0, "'1' ('1' differs by case, spaces or decimals alone); correct the record"),
        (SINGLE, None, "the record has no label; give it one"),
        (SINGLE, ["good"], "the label is '[\"good\"]', but objective.labels has"),
        (MULTI, "x", 'the label is "x", but problem is multi_label; give a list of labels'),
        (MULTI, ["x", "z"], "the label is 'z', but objective.labels has 'x', 'y'"),
        (NUMBER, "many", 'the label is ["many"], but objective.labels asks for 1 finite number; correct the record'),
        (NUMBER, [1, 2], "the label is [1, 2], but objective.labels asks for 1 finite number"),
        (NUMBER, "nan", "asks for 1 finite number"),
    ],
)
def test_a_wrong_label_stops_with_its_place(
    order: str, objective: ClassificationObjective, value: Any, words: str, tmp_path: Path
) -> None:
    fine: Any = {"single_label": "good", "multi_label": ["x"], "regression": 1}[objective.problem]
    rows = [{"text": "a", "sentiment": each} for each in (fine, fine, value)]
    config = config_of(tmp_path, rows, order=order)
    tokenizer = tokenizer_of(config, tmp_path, objective)
    with pytest.raises(UserError) as caught:
        TrainLoader(
            config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache"
        ).take(3)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": []}, "labels is empty"),
        ({"labels": ["a", "b", "a"]}, "labels has 'a' 2 times; name each label once"),
        ({"labels": ["a"]}, "there must be two to choose from"),
    ],
)
def test_labels_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ClassificationObjective(**settings)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"fields": {}}, r"data\.sources\.0 does not say which field holds the label; set its fields to {label: NAME}"),
        ({"fields": {"label": "mood"}}, r"fields\.label: .* has no field 'mood' among 'text', 'sentiment'"),
    ],
)
def test_a_source_without_labels(source: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, [{"text": "a", "sentiment": "bad"}], source=source)
    tokenizer = tokenizer_of(config_of(tmp_path, [{"text": "a", "sentiment": "bad"}]), tmp_path, SINGLE)
    with pytest.raises(UserError, match=words):
        TrainLoader(config, tokenizer, objective=SINGLE, seed=1, dp_rank=0, dp_size=1)


@pytest.mark.parametrize("order", ["stream", "finite"])
def test_pairs_of_a_table_are_read_as_a_bert_tokenizer_does(order: str, tmp_path: Path) -> None:
    vocabulary, table = tmp_path / "vocab.txt", tmp_path / "rte.tsv"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    rows = [("the film was good", "a very good story", "entailment"), ("the story", "bad", "not_entailment")]
    header = "index\tsentence1\tsentence2\tlabel\n"
    table.write_text(header + "".join(f"{i}\t" + "\t".join(row) + "\n" for i, row in enumerate(rows)))
    settings = {"tokenizer": {"kind": "wordpiece", "path": str(vocabulary)}, "sequence_length": 14, "order": order}
    source = {"kind": "tsv", "paths": [str(table)], "layout": "glue_pairs"}
    config = DataConfig.model_validate({"sources": [source], "lanes": 1, "shuffle_buffer": 1, "workers": 0, **settings})
    objective = ClassificationObjective(labels=["entailment", "not_entailment"], pairs=True)
    tokenizer = tokenizer_of(config, tmp_path, objective)
    cache = tmp_path / "cache"
    with TrainLoader(config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=cache) as loader:
        batch, _ = loader.take(2)
    firsts, seconds, labels = zip(*rows, strict=True)
    theirs = transformers.BertTokenizer(str(vocabulary))(firsts, seconds, padding="max_length", max_length=14)
    expected = {(*map(tuple, (a, b)), objective.labels.index(label)) for a, b, label in zip(
        theirs["input_ids"], theirs["token_type_ids"], labels, strict=True)}  # fmt: skip
    got = zip(batch.inputs.tolist(), batch.segment_ids.tolist(), batch.labels["classification"].tolist(), strict=True)
    assert {(tuple(a), tuple(b), label) for a, b, label in got} == expected
    with pytest.raises(UserError, match=r"data\.sources\.0 has pairs of texts, but objective\.pairs is false"):
        TrainLoader(
            config, tokenizer, objective=objective.model_copy(update={"pairs": False}), seed=1, dp_rank=0, dp_size=1,
            cache=cache,
        )  # fmt: skip
