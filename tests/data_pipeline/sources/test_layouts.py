"""Common forms of records beside those worked out by hand, in every kind of file; parallel files line by line; tables
without a header row; and what is none of these."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.document import Document
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers.bad_records import FILLED

ASK, YES = {"role": "user", "content": '你好 "x"'}, {"role": "assistant", "content": "yes\nno 😀"}
SYSTEM = {"role": "system", "content": "be kind"}


def says(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def turn(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


ASKS, SAYS = ASK["content"], YES["content"]
LAYOUTS: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "messages": [({"messages": [ASK, YES]}, [ASK, YES]), ({"messages": [SYSTEM, ASK, YES]}, [SYSTEM, ASK, YES])],
    "sharegpt": [
        ({"conversations": [turn("human", ASKS), turn("gpt", SAYS)]}, [ASK, YES]),
        (
            {"system": "be kind", "conversations": [turn("user", ASKS), turn("chatgpt", SAYS)]},
            [SYSTEM, ASK, YES],
        ),
    ],
    "alpaca": [
        ({"instruction": ASKS, "input": "", "output": SAYS}, [ASK, YES]),
        ({"instruction": "say", "input": "yes", "output": "no"}, [says("user", "say\nyes"), says("assistant", "no")]),
        (
            {"instruction": "q2", "output": "a2", "system": "be kind", "history": [["q1", "a1"]]},
            [SYSTEM, *(says(role, text + n) for n in "12" for role, text in (("user", "q"), ("assistant", "a")))],
        ),
    ],
}


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\r\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif kind == "parquet":
        names = list(dict.fromkeys(name for row in rows for name in row))
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return {"kind": kind, "paths": [str(path)]}


def documents(source: dict[str, Any], **settings: Any) -> list[Document]:
    return list(Corpus([SourceConfig.model_validate(source)], **settings).documents())


@pytest.mark.parametrize("chosen", ["its own", "auto"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_dialogues_are_what_they_say(name: str, kind: str, chosen: str, tmp_path: Path) -> None:
    rows, expected = zip(*LAYOUTS[name], strict=True)
    source = {**write(tmp_path, kind, list(rows)), "layout": "auto" if chosen == "auto" else name}
    found = documents(source)
    assert [document.values["messages"] for document in found if document.values] == list(expected)
    assert all(document.text.strip() for document in found)


def test_auto_takes_each_record_as_what_it_is_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for cases in LAYOUTS.values() for row, _ in cases]
    found = documents({**write(tmp_path, "jsonl", rows), "layout": "auto"})
    assert [each.values["messages"] for each in found if each.values] == [
        e for cases in LAYOUTS.values() for _, e in cases
    ]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"the records of {tmp_path / 'rows.jsonl'} are in layout messages"]


def test_alpaca_in_csv_gives_pairs_as_well(tmp_path: Path) -> None:
    rows = [{"q": "say", "input": "", "a": "no"}, {"q": "tell", "input": "me", "a": "so"}]
    source = {**write(tmp_path, "csv", rows), "layout": "alpaca", "fields": {"instruction": "q", "output": "a"}}
    assert [(each.text, each.target) for each in documents(source)] == [("say", "no"), ("tell\nme", "so")]


def test_absent_fields_have_defaults(tmp_path: Path) -> None:
    rows = [{"instruction": "say", "output": None}, {"instruction": "tell", "output": "so"}]
    source = {**write(tmp_path, "jsonl", rows), "layout": "alpaca", "defaults": {"output": "nothing", "input": "x"}}
    corpus = Corpus([SourceConfig.model_validate(source)])
    assert [(each.text, each.target) for each in corpus.documents()] == [("say\nx", "nothing"), ("tell\nx", "so")]
    assert corpus.dropped[FILLED] >= 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sentence": 'a "film', "label": "1"}, ('a "film', None, "1")),
        ({"index": "0", "sentence1": "a", "sentence2": "b", "label": "entailment"}, ("a", "b", "entailment")),
        ({"question1": "a", "question2": "b", "is_duplicate": "0"}, ("a", "b", "0")),
        ({"question": "a", "sentence": "b", "label": "not_entailment"}, ("a", "b", "not_entailment")),
        ({"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "a", "#2 String": "b"}, ("a", "b", "1")),
        ({"sentence1": "a", "sentence2": "b", "score": "3.5"}, ("a", "b", "3.5")),
    ],
)
def test_tables_of_glue(row: dict[str, str], expected: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    [found] = documents({"kind": "tsv", "paths": [str(path)], "layout": "glue_pairs" if expected[1] else "glue"})
    assert (found.text, found.target or None, (found.values or {})["label"]) == expected


def lines(folder: Path, *sides: str) -> dict[str, Any]:
    for name, text in zip(("a.de", "a.en"), sides, strict=True):
        (folder / name).write_bytes(text.encode())
    return {"kind": "text", "document": "line", "paths": [f"{folder}/a.de"], "target_paths": [f"{folder}/a.en"]}


@pytest.mark.parametrize("span_bytes", [200, 5000, 1 << 20])
def test_parallel_files_pair_by_line(span_bytes: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    pairs = [(f"{i} " + "ä你😀 x"[: draw.integers(0, 6)], f"{i} " + "y" * draw.integers(0, 90)) for i in range(2000)]
    pairs[700] = ("", "gone")
    source = lines(tmp_path, "".join(f"{a}\r\n" for a, _ in pairs), "\n".join(b for _, b in pairs))
    corpus = Corpus([SourceConfig.model_validate(source)], span_bytes=span_bytes)
    expected = [pair for pair in pairs if pair[0]]
    found = list(corpus.documents())
    assert [(each.text, each.target) for each in found] == expected
    assert corpus.dropped["empty"] >= 1
    assert len(corpus.spans) == {200: 8, 5000: 4, 1 << 20: 1}[span_bytes] or span_bytes == 5000
    # From any document on.
    for number in draw.integers(0, len(found), 40).tolist():
        wanted = found[number]
        span = next(s for s in corpus.spans if s.start <= wanted.position < s.stop)
        block, _ = corpus.read(span, wanted.position)
        assert (block[0].text, block[0].target, block[0].id) == (wanted.text, wanted.target, wanted.id)
    assert corpus.place(found[1500]).endswith("a.de:1502")


def test_parallel_files_change_the_digest_on_either_side(tmp_path: Path) -> None:
    digests = set()
    for second in ("x\ny\n", "x\nz\n"):
        digests.add(Corpus([SourceConfig.model_validate(lines(tmp_path, "a\nb\n", second))]).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("first", ["a\nb\nc\n", "a\nb\nc"])
def test_parallel_files_of_different_lengths_are_refused(first: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        documents(lines(tmp_path, first, "x\ny\n"))
    assert str(caught.value) == (
        f"{tmp_path}/a.de has 3 lines, but {tmp_path}/a.en has 2; give files whose lines belong together"
    )


def test_each_parallel_file_needs_its_partner(tmp_path: Path) -> None:
    source = lines(tmp_path, "a\n", "b\n")
    (tmp_path / "b.en").write_text("x\n")
    with pytest.raises(UserError, match=r"paths has 1 files, but data\.sources\[0\]\.target_paths has 2"):
        documents({**source, "target_paths": [f"{tmp_path}/*.en"]})


def test_tables_without_a_header(tmp_path: Path) -> None:
    rows = "to title\tlong text\tshort\nto title\tanother\t题\n"
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    (tmp_path / "b.tsv").write_text("task\tsource\ttitle\n" + rows)
    common = {"kind": "tsv", "columns": ["task", "source", "title"], "field": "source", "target_field": "title"}
    expected = [("long text", "short"), ("another", "题")]
    for name in ("a.tsv", "b.tsv"):
        source = SourceConfig.model_validate({**common, "paths": [str(tmp_path / name)]})
        for span_bytes in (10, 1 << 20):
            found = [(e.text, e.target) for e in Corpus([source], span_bytes=span_bytes).documents()]
            assert found == expected
    with pytest.raises(UserError, match="has 3 columns, but 2 are named: source, title; name all of them"):
        documents({**common, "columns": ["source", "title"], "paths": [str(tmp_path / "a.tsv")]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"layout": "sharegtp"},
            "layout is 'sharegtp', but the layouts are alpaca, auto, ",
        ),
        ({"layout": "alpaca", "field": "x"}, "layout is alpaca, which says where texts are; leave field out"),
        ({"layout": "alpaca", "kind": "text"}, "layout is alpaca, but kind text has no fields; use jsonl or csv"),
        ({"target_paths": ["x"]}, "files of kind jsonl are not read line by line; set kind=text and document=line"),
        ({"columns": ["x"]}, "columns is ['x'], but kind jsonl has none; leave it out"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig.model_validate({"kind": "jsonl", "paths": ["a"], **settings})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"layout": "sharegpt"},
            "rows.jsonl has no field conversations but 'messages'; name another layout, or say in",
        ),
        (
            {"layout": "alpaca", "fields": {"question": "q"}},
            "fields names 'question', but layout alpaca has instruction",
        ),
        (
            {"layout": "messages", "defaults": {"x": ""}},
            "defaults has 'x', but the fields that are read are 'messages'",
        ),
    ],
)
def test_records_of_another_form_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl", [LAYOUTS["messages"][0][0]])
    with pytest.raises(UserError) as caught:
        documents({**source, **settings})
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_texts_are_joined(kind: str, tmp_path: Path) -> None:
    rows = [
        {"name": "a", "lines": ["气和玉烛", "睿化著鸿明"]},
        {"name": "b", "lines": []},
        {"name": "c", "lines": ["x"]},
    ]
    source = {**write(tmp_path, kind, rows), "field": "{name}:{lines}", "target_field": "lines", "join": "，"}
    found = [(each.text, each.target) for each in documents(source)]
    assert found == [("a:气和玉烛，睿化著鸿明", "气和玉烛，睿化著鸿明"), ("c:x", "x")]
    with pytest.raises(UserError):
        documents({**source, "join": None})
