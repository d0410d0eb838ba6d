"""Plain text among dialogues: which tokens are learned and how much, its share of the rows, dialogues as without it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.objectives.chat import ChatObjective
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import BytesTokenizer
from tests.data_pipeline.objectives.test_chat import LENGTH, ORDERS, dialogues, loader_of

EOS = BytesTokenizer().special["eos"]
REPLAY = ChatObjective(weights={"assistant": 1.0, "text": 0.25})


def texts() -> list[str]:
    """Of no length, of a row's, and of several rows."""
    draw = random.Random(3)
    sizes = [0, 1, LENGTH - 2, LENGTH - 1, LENGTH, 2 * LENGTH, *(draw.randint(2, 4 * LENGTH) for _ in range(34))]
    return [
        f"{number}".rjust(min(size, 2), "#") + "x" * (size - 2) if size else "" for number, size in enumerate(sizes)
    ]


def config_of(folder: Path, share: float | None = 0.25, **changes: Any) -> DataConfig:
    """Dialogues, and texts with a share of the rows; None: no texts."""
    (folder / "chat.jsonl").write_text(
        "".join(json.dumps({"text": "x", "chat": each}) + "\n" for each in dialogues(90))
    )
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts()))
    chat = {"kind": "jsonl", "paths": [str(folder / "chat.jsonl")], "fields": {"messages": "chat"}, "label": "chat"}
    plain = {"kind": "jsonl", "paths": [str(folder / "texts.jsonl")], "label": "text", "weight": share}
    sources = [chat] if share is None else [{**chat, "weight": 1 - share}, plain]
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": LENGTH, "lanes": 1, "shuffle_buffer": 1, **changes}
    return DataConfig.model_validate({"sources": sources, "workers": 0, **settings})


def documents_of(batch: Batch) -> list[list[list[tuple[int, float]]]]:
    """The documents of each row: their targets with weights, behind the token that they begin with."""
    assert batch.segment_ids is not None
    rows = []
    for row in range(batch.size):
        segments = batch.segment_ids[row].numpy()
        found = []
        for number in range(segments.max() + 1):
            own = np.flatnonzero(segments == number)
            pairs = zip(batch.targets[row][own].tolist(), batch.weights[row][own].tolist(), strict=True)
            found.append([(int(batch.inputs[row][own[0]]), 0.0), *pairs])
        rows.append(found)
    return rows


def is_text(document: list[tuple[int, float]]) -> bool:
    return all(weight == 0.25 for _, weight in document[1:])


@ORDERS
def test_each_token_of_a_text_is_learned_once_as_in_causal_training(order: str, tmp_path: Path) -> None:
    """Of eos, text, eos, as a run from scratch reads documents: in rows that share a token with the next one."""
    whole = [[EOS, *BytesTokenizer().encode(text), EOS] for text in texts() if text]
    wanted = sorted(ids[at : at + LENGTH + 1] for ids in whole for at in range(0, len(ids) - 1, LENGTH))
    rows: list[Any] = []
    with loader_of(config_of(tmp_path, order=order), REPLAY, tmp_path) as loader:
        for _ in range(120):
            rows += documents_of(loader.take(4)[0])
    found = [[token for token, _ in document] for row in rows for document in row if is_text(document)]
    assert sorted(found[: len(wanted)]) == wanted
    assert sum(map(len, wanted)) - len(wanted) == sum(map(len, whole)) - len(whole)
    # A quarter of the rows, and no row has both.
    assert {frozenset(map(is_text, row)) for row in rows} == {frozenset({True}), frozenset({False})}
    assert sum(is_text(row[0]) for row in rows) == pytest.approx(len(rows) / 4, abs=12)


@ORDERS
def test_dialogues_are_read_as_without_texts(order: str, tmp_path: Path) -> None:
    """Row by row, and held-out figures are of them alone."""
    with_texts, alone = config_of(tmp_path, order=order), config_of(tmp_path, None, order=order)
    with loader_of(alone, ChatObjective(), tmp_path / "alone") as loader:
        expected = [row for _ in range(10) for row in documents_of(loader.take(2)[0])]
    with loader_of(with_texts, REPLAY, tmp_path) as loader:
        found = [row for _ in range(20) for row in documents_of(loader.take(2)[0]) if not is_text(row[0])]
    assert len(found) >= 20
    if order == "stream":  # the permutation of a source depends on its number in the mixture
        assert found[:20] == expected
    tokenizer, held = BytesTokenizer(), {}
    for name, config, objective in (("with", with_texts, REPLAY), ("alone", alone, ChatObjective())):
        evaluated = config.model_copy(update={"evaluation": config.sources})
        held[name] = build_evaluation_set(evaluated, tokenizer, tmp_path / f"held-{name}", objective=objective)
    assert (held["with"].tokens, held["with"].bytes) == (held["alone"].tokens, held["alone"].bytes)


@ORDERS
def test_two_ranks_and_a_resume_read_the_same(order: str, tmp_path: Path) -> None:
    """Stops are within documents of several rows, too."""
    config = config_of(tmp_path, 0.5, order=order, lanes=2, span_bytes=2000, shuffle_buffer=4)

    def rows(batch: Batch) -> dict[int, Any]:
        both = zip(batch.sample_ids.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True)
        return {number: rest for number, *rest in both}

    with loader_of(config, REPLAY, tmp_path) as loader:
        alone = [rows(loader.take(2)[0]) for _ in range(24)]
    together: list[dict[int, Any]] = []
    cursor = None
    for first in range(0, 24, 3):
        loaders = [
            loader_of(config, REPLAY, tmp_path, dp_rank=r, dp_size=2, first_sample=2 * first, cursor=cursor)
            for r in (0, 1)
        ]
        for _ in range(3):
            together.append({k: v for loader in loaders for k, v in rows(loader.take(1)[0]).items()})
        cursor = merge_cursors([json.loads(json.dumps(loader.cursor())) for loader in loaders])
        for loader in loaders:
            loader.close()
    assert together == alone


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give the assistant a weight"):
        ChatObjective(weights={"text": 1.0})
    config = config_of(tmp_path)
    with pytest.raises(UserError, match=r"data\.sources\.1 does not say .* or objective\.weights\.text to learn plain"):
        loader_of(config, ChatObjective(), tmp_path)
    with pytest.raises(UserError, match=r"none of data\.sources has messages; name a source of dialogues"):
        loader_of(config.model_copy(update={"sources": config.sources[1:]}), REPLAY, tmp_path)
