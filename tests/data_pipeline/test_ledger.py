"""The ledger says what each step saw, and the data can be made to say it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records
from data_pipeline.config import DataConfig
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.ledger import LedgerWriter, first_difference, replay
from data_pipeline.loader import TrainLoader
from data_pipeline.prepare.prepare import prepare
from data_pipeline.stream.lanes import Lanes
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts, write_jsonl

BATCH = 8


def train(run: Path, data: DataConfig, steps: int, attempt: int = 0, start: int = 0, seed: int = 0) -> dict[int, list]:
    """Take steps as a trainer does; returns the target tokens of each step's samples by k."""
    run.mkdir(exist_ok=True)
    seen: dict[int, list] = {}
    ledger = LedgerWriter(run, attempt)
    ranks = {"dp_rank": 0, "dp_size": 1, "first_sample": start * BATCH}
    with TrainLoader(data, load_tokenizer(bytes_tokenizer(run)), seed=seed, **ranks, cache=run / "cache") as loader:
        for step in range(start + 1, steps + 1):
            batch, total = loader.take(BATCH)
            first = int(batch.sample_ids[0])
            ledger.write(step, first, first + BATCH - 1, total)
            if step % 4 == 0:
                ledger.snapshot(loader.cursor())
            seen[step] = list(zip(batch.sample_ids.tolist(), batch.targets.tolist(), strict=True))
    ledger.close()
    return seen


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return config(write_jsonl(tmp_path / "data", texts(120)), lanes=4)


def test_replay_shows_the_documents_and_tokens_of_a_step(tmp_path: Path, data: DataConfig) -> None:
    run = tmp_path / "run"
    seen = train(run, data, 11)
    for step in (1, 4, 5, 11):
        pieces = list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=step))
        for k, expected in seen[step]:
            own = [piece for piece in pieces if piece.sample == k]
            assert [token for piece in own for token in piece.tokens][1:] == expected
        for piece in pieces:
            path, position, first = piece.origin
            line = Path(path).read_bytes()[position:].split(b"\n")[0]
            whole = [2, *(byte + 3 for byte in json.loads(line)["text"].encode()), 2]
            assert whole[first + 1 : first + 1 + len(piece.tokens)] == piece.tokens


@pytest.mark.parametrize("prepared", [False, True])
def test_replay_of_a_finite_set_names_the_files_of_the_texts(tmp_path: Path, prepared: bool) -> None:
    made = [write_jsonl(tmp_path / name, texts(40, seed), 3) for seed, name in enumerate("ab")]
    if prepared:
        for name, source in zip("ab", made, strict=True):
            prepare(config(source), tmp_path / f"tokens-{name}")
        made = [{"kind": "tokens", "paths": [f"{tmp_path}/tokens-{name}/train"]} for name in "ab"]
    weighted = [{**source, "weight": weight} for weight, source in enumerate(made, start=1)]
    data = config(*weighted, order="finite")
    run = tmp_path / "run"
    train(run, data, 5)
    folders = set()
    for step in range(1, 6):
        for piece in replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=step, cache=run / "cache"):
            path, position, first = piece.origin
            line = Path(path).read_bytes()[position:].split(b"\n")[0]
            whole = [*(byte + 3 for byte in json.loads(line)["text"].encode()), 2]
            assert whole[first : first + len(piece.tokens)] == piece.tokens
            folders.add(Path(path).parent.name)
    assert folders == {"a", "b"}


def test_replay_of_tokens_without_their_files_names_the_documents_of_the_bin_file(tmp_path: Path) -> None:
    documents = [np.arange(5, 5 + size, dtype=np.int64) for size in range(20, 60)]
    for name in "ab":
        with IndexedWriter(tmp_path / name, np.dtype("uint16")) as writer:
            writer.add(documents)
    data = config({"kind": "tokens", "paths": [f"{tmp_path}/a", f"{tmp_path}/b"]})
    run = tmp_path / "run"
    train(run, data, 5)
    paths = set()
    for piece in replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=4):
        path, position, first = piece.origin
        assert documents[position][first : first + len(piece.tokens)].tolist() == piece.tokens
        paths.add(path)
    assert paths == {f"{tmp_path}/a.bin", f"{tmp_path}/b.bin"}


def test_replay_goes_through_at_most_the_steps_since_a_snapshot(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(run, data, 30)
    calls: list[int] = []
    original = Lanes.next
    monkeypatch.setattr(Lanes, "next", lambda self, lane: calls.append(lane) or original(self, lane))
    list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=28))
    assert len(calls) == 4 * BATCH


def test_replay_on_other_data_or_steps_is_refused(tmp_path: Path, data: DataConfig) -> None:
    run = tmp_path / "run"
    train(run, data, 6)
    with pytest.raises(UserError, match=r"has no step 7: it has steps 1 to 6"):
        list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=7))
    with pytest.raises(UserError, match=r"step 3 .* has ledger sum"):
        list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=1, step=3))
    with pytest.raises(UserError, match=r"run.seed = 0, but it is 1"):
        list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=1, step=6))
    path = tmp_path / "data" / "0.jsonl"
    path.write_bytes(path.read_bytes() + b'\n{"text": "more"}')
    with pytest.raises(UserError, match=r"0.jsonl changed since the run was saved"):
        list(replay(run, data, load_tokenizer(run / "tokenizer"), seed=0, step=6))


def test_the_first_difference_of_two_runs(tmp_path: Path, data: DataConfig) -> None:
    train(tmp_path / "a", data, 9)
    train(tmp_path / "b", data, 5)
    train(tmp_path / "b", data, 7, attempt=1, start=4)
    assert first_difference(tmp_path / "a", tmp_path / "b") is None
    train(tmp_path / "b", data, 6, attempt=2, start=5, seed=1)
    difference = first_difference(tmp_path / "a", tmp_path / "b")
    assert difference is not None
    assert difference.step == 6
    assert difference.row_a is not None
    assert difference.row_b is not None
    assert difference.row_a["sum"] != difference.row_b["sum"]
    with pytest.raises(UserError, match=r"has no ledger"):
        first_difference(tmp_path / "a", tmp_path / "nothing")


def test_rows_are_as_designed(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, 3)
    writer.write(1, 0, 7, 255)
    writer.write(2, 8, 15, -1)
    writer.close()
    assert read_records(tmp_path / "ledger.jsonl") == [
        {"step": 1, "first_sample": 0, "last_sample": 7, "sum": "00000000000000ff", "attempt": 3},
        {"step": 2, "first_sample": 8, "last_sample": 15, "sum": "f" * 16, "attempt": 3},
    ]
