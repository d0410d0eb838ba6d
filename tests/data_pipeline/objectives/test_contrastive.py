"""Queries, positives and hard negatives to samples, whatever their writing, and records that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.contrastive import ContrastiveObjective
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer

LENGTH = 32
ROWS = [
    {"q": "床前明月光", "p": "疑是地上霜", "n": ["举头望明月", "低头思故乡"]},
    {"q": "", "p": "an empty query \U0001f600", "n": ["a", ""]},
    {"q": "a text that is far too long " * 9, "p": "床前明月光", "n": ["x\r\ny", "z"]},
    {"q": "床前明月光", "p": "e\u0301", "n": ["1", "2", "one more than is needed"]},
]


def config_of(folder: Path, rows: list[dict[str, Any]], order: str = "stream", **source: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"kind": "jsonl", "paths": [str(path)], "field": "q", **source}
    return DataConfig.model_validate(
        {
            "sources": [given],
            "evaluation": [given],
            "tokenizer": {"kind": "bytes"},
            "sequence_length": LENGTH,
            "lanes": 1,
            "shuffle_buffer": 1,
            "order": order,
        }
    )


def take(config: DataConfig, objective: ContrastiveObjective, folder: Path, samples: int) -> tuple[Any, Tokenizer]:
    tokenizer = prepare_tokenizer(config, folder / "tokenizer", roles=objective.roles(LENGTH))
    cache = folder / "cache"
    with TrainLoader(config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=cache) as loader:
        return loader.take(samples)[0], tokenizer


def plain_row(text: str, tokenizer: Tokenizer, pooling: str) -> list[int]:
    """`[CLS] text [SEP]`, or the text and eos; cut at its end, with padding."""
    special = tokenizer.special
    begin, end = ([special["cls"]], [special["sep"]]) if pooling == "first" else ([], [special["eos"]])
    tokens = [*begin, *list(tokenizer.encode(text))[: LENGTH - len(begin) - len(end)], *end]
    return tokens + [special["pad"]] * (LENGTH - len(tokens))


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    ("pooling", "negatives", "positives"),
    [("first", 2, "target"), ("mean", 0, "target"), ("last", 1, "dropout"), ("first", 0, "dropout")],
)
def test_each_query_has_its_own_texts(order: str, pooling: Any, negatives: int, positives: Any, tmp_path: Path) -> None:
    objective = ContrastiveObjective(pooling=pooling, negatives=negatives, positives=positives)
    source: dict[str, Any] = {"target_field": "p"} if positives == "target" else {}
    source |= {"fields": {"negatives": "n"}} if negatives else {}
    config = config_of(tmp_path, ROWS, order, **source)
    batch, tokenizer = take(config, objective, tmp_path, 8)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective).batch([0, 1, 2, -1])
    expected = {}
    for row in ROWS:
        second = row["p"] if positives == "target" else row["q"]
        texts = [row["q"], second, *row["n"][:negatives]]
        rows = [plain_row(str(text), tokenizer, pooling) for text in texts]
        expected[json.dumps(rows)] = rows
    known: dict[int, list[int]] = {}
    for each in (batch, held):
        sizes = (each.size, 2 + negatives, LENGTH)
        for inputs, weights, keys in zip(
            each.inputs.view(sizes).tolist(),
            each.encoder_weights.view(sizes).tolist(),
            each.labels["contrastive"].tolist(),
            strict=True,
        ):
            if keys[0] == -1:
                assert each is held
                assert set(keys) == {-1}
                continue
            assert expected[json.dumps(inputs)] == inputs
            for row, weight, key in zip(inputs, weights, keys, strict=True):
                assert weight == [float(token != tokenizer.special["pad"]) for token in row]
                assert known.setdefault(key, row) == row
    assert len({json.dumps(row) for row in known.values()}) == len(known)
    assert held.labels["contrastive"][-1].eq(-1).all()
    assert held.weights.flatten().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"q": "a", "p": "b", "n": ["c"]}, "the record has 1 negative, but objective.negatives is 2"),
        ({"q": "a", "p": "b", "n": 7}, "the negatives are 7, but must be a text or a list of texts"),
        ({"q": "a", "p": "b", "n": ["c", None]}, "must be a text or a list of texts"),
        ({"q": "a", "p": "b", "n": None}, "the negatives are null"),
    ],
)
def test_wrong_negatives_are_refused_with_their_place(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    objective = ContrastiveObjective(negatives=2)
    config = config_of(tmp_path, [*ROWS, row], target_field="p", fields={"negatives": "n"})
    with pytest.raises(UserError, match=words) as caught:
        take(config, objective, tmp_path, 8)
    assert "rows.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("negatives", "source", "words"),
    [
        (0, {}, "has no target_field; name the field that holds the target text"),
        (1, {"target_field": "p"}, r"set its fields to \{negatives: NAME\}"),
    ],
)
def test_sources_say_where_the_texts_are(negatives: int, source: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, ROWS, **source)
    with pytest.raises(UserError, match=words):
        take(config, ContrastiveObjective(negatives=negatives), tmp_path, 8)


def test_rows_without_the_positive_are_left_out_and_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path, [*ROWS, {"q": "alone"}, {"q": "a", "p": None}], "finite", target_field="p")
    objective = ContrastiveObjective()
    tokenizer = prepare_tokenizer(config, tmp_path / "tokenizer", roles=objective.roles(LENGTH))
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    assert held.documents == len(ROWS) - 1  # an empty text is none
    assert np.sum(list(held.dropped.values())) == 3
