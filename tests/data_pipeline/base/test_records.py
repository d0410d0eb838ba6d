"""Rows written by attempts that died at any instant, read back."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.records import RecordWriter, read_records


def write(path: Path, attempt: int, *steps: int) -> None:
    with RecordWriter(path, attempt) as writer:
        for step in steps:
            writer.write({"step": step, "loss": step / 10 + attempt})


def seen(path: Path) -> list[tuple[int, int]]:
    return [(row["step"], row["attempt"]) for row in read_records(path)]


def test_rows_come_back(tmp_path: Path) -> None:
    write(tmp_path / "a" / "rows.jsonl", 0, 1, 2)
    assert read_records(tmp_path / "a" / "rows.jsonl") == [
        {"step": 1, "loss": 0.1, "attempt": 0},
        {"step": 2, "loss": 0.2, "attempt": 0},
    ]
    assert read_records(tmp_path / "missing.jsonl") == []


def test_a_later_attempt_ends_what_earlier_ones_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, 0, *range(1, 81))
    write(path, 1, 51, 52)
    assert seen(path) == [(step, 0) for step in range(1, 51)] + [(51, 1), (52, 1)]
    write(path, 2, 41)
    assert seen(path) == [(step, 0) for step in range(1, 41)] + [(41, 2)]


def test_rows_of_several_kinds_at_one_step_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RecordWriter(path, 3) as writer:
        writer.write({"step": 1, "loss": 2.0})
        writer.write({"step": 1, "evaluation": {"loss": float("nan")}})
    rows = read_records(path)
    assert [sorted(row) for row in rows] == [["attempt", "loss", "step"], ["attempt", "evaluation", "step"]]


@settings(deadline=None)
@given(cut=st.integers(min_value=0, max_value=200), tail=st.sampled_from([b"", b"\0\0\0", b"garbage\n", b"[1]\n"]))
def test_any_torn_tail_costs_only_its_own_row(tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write(path, 0, 1, 2, 3)
    whole = path.read_bytes()
    kept = whole[: max(0, len(whole) - cut)]
    path.write_bytes(kept + tail)
    complete = [json.loads(line)["step"] for line in kept.split(b"\n") if line.endswith(b"}")]
    if kept and not kept.endswith(b"\n") and tail:
        complete = [json.loads(line)["step"] for line in kept.split(b"\n")[:-1]]
    write(path, 1, 4)
    assert seen(path) == [(step, 0) for step in complete] + [(4, 1)]


def test_a_full_disk_is_reported_and_the_writer_recovers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = RecordWriter(path, 0)
    writer.write({"step": 1})
    good = writer._file
    with open("/dev/full", "wb", buffering=0) as full:
        writer._file = full
        with pytest.raises(OSError, match="No space"):
            writer.write({"step": 2})
    writer._file = good
    os.write(good.fileno(), b'{"step": 2, "att')
    writer.write({"step": 2})
    assert seen(path) == [(1, 0), (2, 0)]


def test_an_attempt_that_says_where_it_continues(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path, 1, continues=0) as first:
        for step in (1, 2, 3, 4):
            first.write({"step": step, "loss": step})
    # It died after step 4 with a checkpoint of step 2, whose evaluation is still to be done.
    with RecordWriter(path, 2, continues=2) as second:
        assert [row["step"] for row in read_records(path)] == [1, 2]
        second.write({"step": 2, "evaluation": 20})
        second.write({"step": 3, "loss": 30})
    rows = [(row["step"], row.get("loss", row.get("evaluation"))) for row in read_records(path)]
    assert rows == [(1, 1), (2, 2), (2, 20), (3, 30)]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RecordWriter(path, 1) as writer:
        writer.write({"step": 1, "loss": math.nan, "inner": {"a": math.inf, "b": [-math.inf, 1.5]}})
    [line] = path.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["inner"] == {"a": None, "b": [None, 1.5]}
    assert read_records(path)[0]["loss"] is None
