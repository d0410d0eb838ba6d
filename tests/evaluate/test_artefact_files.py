"""Artefacts are read back as they were written, and a damaged one is refused with file and line."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import ITEMS_FILE, META_FILE, Answer, Meta, Record
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.artefact_writer import ArtefactWriter

META = Meta(
    1,
    "arc",
    "task",
    "choice",
    ["accuracy"],
    3,
    None,
    0,
    "run/checkpoints/step-1",
    "m",
    "r",
    "causal",
    "exact",
    {"k": 1},
)
ANSWER = Answer([5, 6], [(-1, 2), (2, 7)], [-0.25, -1.5], [True, False], 7, 6)
RECORDS = [
    Record(0, "a1", [ANSWER, ANSWER], [-2.0, -3.0], [1], cluster="text", group="física", scored_bytes=9),
    Record(2, "b2", generated=["乌龟\n"], references=["龟"], flags=["windowed"]),
    Record(3, "c3", probabilities=[0.25, 0.75], gold=[0, 1]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = ArtefactWriter(tmp_path / "arc", META, ["a1", "b2", "c3"])
    writer.append(RECORDS)
    writer.close()
    return tmp_path / "arc"


def test_an_artefact_is_read_as_it_was_written(folder):
    artefact = load_artefact(folder)
    assert (artefact.path, artefact.meta, artefact.records) == (str(folder), META, RECORDS)


def test_a_line_that_was_cut_off_is_left_out(folder):
    whole = (folder / ITEMS_FILE).read_bytes()
    for size in (len(whole) - 2, whole.rindex(b"{", 0, len(whole) - 3) + 5):
        (folder / ITEMS_FILE).write_bytes(whole[:size])
        assert load_artefact(folder).records == RECORDS[:2]
    (folder / ITEMS_FILE).write_bytes(whole[:-1])  # all but the newline
    assert load_artefact(folder).records == RECORDS
    (folder / ITEMS_FILE).write_bytes(b"")
    assert load_artefact(folder).records == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"number": 1, "item"', "Invalid JSON"),
        (b"[]", "object"),
        (b'{"number": 1}', "item: Field required"),
        (b'{"number": "1", "item": "x"}', "number: Input should be a valid integer"),
        (b'{"number": 1, "item": "x", "gold": [0.5]}', "gold.0: Input should be a valid integer"),
        (b'{"number": 1, "item": "x", "answers": [{"ids": [1]}]}', "answers.0.spans: Field required"),
        (b'{"number": 0, "item": "x"}', "item 0 follows item 0"),
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_a_damaged_line_is_named(folder, line, problem):
    path = folder / ITEMS_FILE
    lines = path.read_bytes().split(b"\n")
    lines[1] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError) as error:
        load_artefact(folder)
    assert str(error.value).startswith(f"{path}:2 is damaged: ")
    assert problem in str(error.value)
    assert str(error.value).endswith(f"remove {folder} and evaluate again")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (b"{", "is damaged: it is no JSON"),
        (b"[]", "has format None, but this version of llmscale reads 1"),
        (json.dumps(asdict(replace(META, format=2))).encode(), "has format 2, but"),
        (json.dumps({**asdict(META), "items": "many"}).encode(), "is damaged: items: Input should be a valid integer"),
        (json.dumps({"format": 1, "task": "arc"}).encode(), "is damaged: task_digest: Field required"),
    ],
)
def test_a_damaged_meta_is_named(folder, contents, problem):
    (folder / META_FILE).write_bytes(contents)
    with pytest.raises(UserError) as error:
        load_artefact(folder)
    assert str(error.value).startswith(f"{folder / META_FILE} {problem}")


@pytest.mark.parametrize("missing", [META_FILE, ITEMS_FILE])
def test_a_folder_that_is_no_artefact_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{folder} is no evaluation, since {missing} cannot be read"):
        load_artefact(folder)
