"""Records of wrong types are left out of a report and counted; what is sound is shown."""

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.records import read_counted_records, read_records
from data_pipeline.ledger import first_difference
from llmscale.report import write_report
from llmscale.report.record import read_run
from tests.report.synthetic_runs import write_run

WRONG: list[Any] = [
    "x", "1", [], [1], {}, {"a": 1}, True, math.nan, math.inf, -1, 0, 10**400, 1e308, None, {"bits_per_byte": "x"},
    {"bits_per_byte": 0}, "\x1b[2J", [[[]]],
]  # fmt: skip


def test_lines_of_every_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=20, evaluation_interval=5)
    path = run / "metrics.jsonl"
    sound = read_run(run, "run")
    damaged = [
        "[1, 2]", '"text"', "7", "null", "{}", "{", '{"step": "5", "attempt": 0, "loss": 1.0}',
        '{"step": true, "attempt": 0, "loss": 1.0}', '{"step": 5, "loss": 1.0}', '{"step": -5, "attempt": 0}',
        '{"step": ' + "9" * 400 + ', "attempt": 0}', '{"step": NaN, "attempt": 0}', "[" * 200_000, "\x00\xff",
        '{"step": ' + "9" * 5_000 + ', "attempt": 0}',
    ]  # fmt: skip
    path.write_text(path.read_text() + "\n".join(damaged) + '\n{"step": 21, "att')
    rows, skipped = read_counted_records(path)
    assert skipped == len(damaged)  # the last line is still being written
    assert rows == read_records(path)
    read = read_run(run, "run")
    assert read.skipped == len(damaged)
    for name, series in sound.metrics.items():
        assert np.array_equal(read.metrics[name].value, series.value, equal_nan=True), name
    assert write_report([run]).skipped == len(damaged)


def test_values_of_every_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, evaluation_interval=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1]["loss"], rows[2]["tokens"], rows[3]["lr"] = "1.5", [3], {"a": 1}
    held = next(row for row in rows if "evaluation" in row)
    held["evaluation"] = ["loss"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_run(run, "run")
    assert read.skipped == 4
    assert [bool(np.isfinite(value)) for value in read.metrics["loss"].value] == [True, False, *[True] * 4]
    write_report([run])


@pytest.mark.parametrize("name", ["summary.json", "outcome.json", "metrics.jsonl"])
def test_each_field_replaced(tmp_path: Path, name: str) -> None:
    """A page is made whatever one of the fields holds."""
    run = write_run(tmp_path / "run", steps=3, evaluation_interval=3)
    path = run / name
    lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    whole = [json.loads(line) for line in lines]
    draw = random.Random(3)
    places = [(row, *at) for row, value in enumerate(whole) for at in _places(value)]
    for at in draw.sample(places, min(len(places), 3)):
        changed = json.loads(json.dumps(whole))
        node: Any = changed
        for key in at[:-1]:
            node = node[key]
        node[at[-1]] = draw.choice(WRONG)
        path.write_text("\n".join(map(json.dumps, changed)) + "\n")
        assert write_report([run]).page.is_file()


def _places(value: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for key, child in value.items() if isinstance(value, dict) else ():
        found += [(key,), *((key, *rest) for rest in _places(child))]
    return found


def test_every_field_of_a_summary_is_read(tmp_path: Path) -> None:
    """Without the pictures, which take most of the time, so that all are tried with all."""
    from llmscale.report.page import _bars, _settings, _state_line, _table, _tiles

    run = write_run(tmp_path / "run", steps=3)
    path = run / "summary.json"
    whole = json.loads(path.read_text())
    for at in _places(whole):
        for value in WRONG:
            changed = json.loads(json.dumps(whole))
            node = changed
            for key in at[:-1]:
                node = node[key]
            node[at[-1]] = value
            path.write_text(json.dumps(changed))
            read = read_run(run, "run")
            for part in (_bars, _table, _state_line):
                part([read])
            _tiles(read)
            _settings(read, named=True)


@pytest.mark.parametrize("name", ["summary.json", "outcome.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["a pipe", "deep", "a device"])
def test_side_files_without_end(tmp_path: Path, name: str, kind: str) -> None:
    run = write_run(tmp_path / "run", steps=3)
    (run / name).unlink()
    if kind == "a pipe":
        os.mkfifo(run / name)
    elif kind == "deep":
        (run / name).write_text("[" * 200_000)
    else:
        (run / name).symlink_to("/dev/zero")
    assert read_run(run, "run").metrics["loss"].value.size == 3


def test_pictures_and_page_replace_links(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / "report").mkdir()
    for name in ("report.html", "loss.png"):
        (run / "report" / name).symlink_to(victim)
    paths = write_report([run])
    assert victim.read_text() == "precious"
    assert not paths.page.is_symlink()
    assert not paths.loss.is_symlink()


def test_ledgers_with_damaged_rows(tmp_path: Path) -> None:
    row = {"first_sample": 0, "last_sample": 7, "sum": "00"}
    for run, damaged in (("a", "[]"), ("b", '{"step": "1", "attempt": 1}')):
        (tmp_path / run).mkdir()
        rows = [json.dumps({"step": 1, **row, "attempt": 1}), damaged]
        (tmp_path / run / "ledger.jsonl").write_text("\n".join(rows) + "\n")
    assert first_difference(tmp_path / "a", tmp_path / "b") is None
