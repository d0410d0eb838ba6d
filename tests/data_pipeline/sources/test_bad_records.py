"""Bad input of every kind: skipped, counted and noted by place, or refused with path and line."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.open_samples import open_samples
from data_pipeline.samples import ReadReport
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers.bad_records import NOTED
from data_pipeline.tokenizer import BytesTokenizer, load_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts

GOOD = '{"text": "good", "aim": "a"}'


def corpus(folder: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [f"{folder}/*"], **source})], **options)


def read(found: Corpus) -> list[str]:
    return [document.text for document in found.documents()]


class Bad(NamedTuple):
    """One bad record among good ones."""

    name: str
    data: bytes
    source: dict[str, Any]
    kept: list[str]
    reason: str
    place: str
    """Line or row, as messages show it."""
    detail: str


def lines(bad: str | bytes) -> bytes:
    bad = bad.encode() if isinstance(bad, str) else bad
    return b"\n".join([GOOD.encode(), GOOD.encode(), bad, GOOD.encode(), b""])


JSONL = {"kind": "jsonl"}
PAIRS = {"kind": "jsonl", "target_field": "aim"}
GOODS = ["good"] * 3
NO_TEXT = "no text in the field"
MENDED = "invalid UTF-8 replaced"
CASES = {
    "a torn line": Bad("a.jsonl", lines('{"text": "to'), JSONL, GOODS, "not JSON", ":3", "unexpected end of data"),
    "two objects on a line": Bad("a.jsonl", lines(GOOD + GOOD), JSONL, GOODS, "not JSON", ":3", "unexpected content"),
    "no JSON": Bad("a.jsonl", lines("text"), JSONL, GOODS, "not JSON", ":3", "invalid literal|unexpected"),
    "a lone surrogate": Bad(
        "a.jsonl",
        lines('{"text": "x\\ud800"}'),
        JSONL,
        ["good", "good", "x�", "good"],
        "lone surrogates replaced",
        ":3",
        "half of a character",
    ),
    "deep nesting": Bad("a.jsonl", lines("[" * 5000), JSONL, GOODS, "not JSON", ":3", ""),
    "NaN": Bad("a.jsonl", lines(json.dumps({"text": "x", "n": float("nan")})), JSONL, GOODS, "not JSON", ":3", ""),
    "Infinity": Bad("a.jsonl", lines('{"text": "x", "n": [-Infinity]}'), JSONL, GOODS, "not JSON", ":3", ""),
    "a list": Bad("a.jsonl", lines('["good"]'), JSONL, GOODS, NO_TEXT, ":3", "the record is a list, not an object"),
    "a missing field": Bad("a.jsonl", lines('{"aim": "x"}'), JSONL, GOODS, NO_TEXT, ":3", "it has no 'text'"),
    "null": Bad("a.jsonl", lines('{"text": null}'), JSONL, GOODS, NO_TEXT, ":3", "'text' is null, not a string"),
    "a number": Bad("a.jsonl", lines('{"text": 1}'), JSONL, GOODS, NO_TEXT, ":3", "'text' is a number, not a string"),
    "an object": Bad("a.jsonl", lines('{"text": {"a": "b"}}'), JSONL, GOODS, NO_TEXT, ":3", "'text' is an object"),
    "no target": Bad("a.jsonl", lines('{"text": "x"}'), PAIRS, GOODS, NO_TEXT, ":3", "it has no 'aim'"),
    "a target of another type": Bad(
        "a.jsonl", lines('{"text": "x", "aim": ["y"]}'), PAIRS, GOODS, NO_TEXT, ":3", "'aim' is a list"
    ),
    "bytes that are not UTF-8 in JSON": Bad(
        "a.jsonl",
        lines(b'{"text": "x\xff"}'),
        JSONL,
        ["good", "good", "x�", "good"],
        MENDED,
        ":3",
        "invalid start byte",
    ),
    "bytes that are not UTF-8 in a line": Bad(
        "a.txt",
        b"one\ntwo\xc3\nthree",
        {"document": "line"},
        ["one", "two�", "three"],
        MENDED,
        ":2",
        "end of data|byte",
    ),
    "bytes that are not UTF-8 between delimiters": Bad(
        "a.txt", b"one\n|\ntwo\xc3|three", {"delimiter": "|"}, ["one\n", "\ntwo�", "three"], MENDED, ":2", "byte|end"
    ),
    "bytes that are not UTF-8 in a file": Bad("a.txt", b"caf\xe9", {}, ["caf�"], MENDED, " (byte 0)", "unexpected end"),
    "too few fields": Bad(
        "a.csv", b"text,n\na,1\nb\nc,3\n", {"kind": "csv"}, ["a", "c"], "malformed row", ":3", "1 fields where .* 2"
    ),
    "too many fields": Bad(
        "a.csv", b"text,n\na,1\nb,2,3\nc,3\n", {"kind": "csv"}, ["a", "c"], "malformed row", ":3", "3 fields where .* 2"
    ),
    "text behind a quote": Bad(
        "a.csv", b'text,n\na,1\n"b"c,2\nc,3\n', {"kind": "csv"}, ["a", "c"], "malformed row", ":3", "expected after"
    ),
    "a quote that is not closed": Bad(
        "a.csv", b'text,n\na,1\n"b,2\nc,3\n', {"kind": "csv"}, ["a", "c"], "malformed row", ":3", "quote is not closed"
    ),
    "bytes that are not UTF-8 in a row": Bad(
        "a.tsv", b"text\tn\na\t1\nb\xff\t2\n", {"kind": "tsv"}, ["a", "b�"], MENDED, ":3", "invalid start byte"
    ),
    "gzip cut in its last sum": Bad(
        "a.jsonl.gz",
        gzip.compress(lines(GOOD))[:-5],
        JSONL,
        ["good"] * 4,
        "compressed file is damaged",
        ":5",
        "cut short",
    ),
    "gzip cut in a record": Bad(
        "a.jsonl.gz",
        gzip.compress(lines(GOOD)) + gzip.compress(GOOD.encode(), 0)[:-20],
        JSONL,
        ["good"] * 4,
        "compressed file is damaged",
        ":5",
        "cut short",
    ),
    "gzip with a wrong sum": Bad(
        "a.jsonl.gz",
        gzip.compress(lines(GOOD)) + gzip.compress(b'{"text": "x"}\n')[:-8] + bytes(8),
        JSONL,
        ["good"] * 4,
        "compressed file is damaged",
        ":5",
        "incorrect data check",
    ),
    "something behind gzip": Bad(
        "a.jsonl.gz", gzip.compress(lines(GOOD)) + b"x", JSONL, ["good"] * 4, "compressed file is damaged", ":5", ""
    ),
    "Zstandard cut between blocks": Bad(
        "a.jsonl.zst",
        zstandard.compress(lines(GOOD)) + zstandard.compress(lines(GOOD))[:7],
        JSONL,
        ["good"] * 4,
        "compressed file is damaged",
        ":5",
        "cut short",
    ),
    "no Zstandard behind the mark": Bad(
        "a.jsonl.zst",
        b"\x28\xb5\x2f\xfdplain text",
        JSONL,
        [],
        "compressed file is damaged",
        ":1",
        "damaged: ",
    ),
    "a compressed document cut short": Bad(
        "a.txt.gz", gzip.compress(b"text" * 99)[:-9], {}, [], "compressed file is damaged", " (byte 0)", "cut short"
    ),
}


SOUND = {".txt.gz": gzip.compress(b"sound"), ".jsonl.zst": zstandard.compress(b'{"text": "sound"}')}
"""A sound file by suffix."""


@pytest.mark.parametrize("name", CASES)
def test_a_bad_record_is_skipped_and_noted(tmp_path: Path, name: str) -> None:
    bad = CASES[name]
    (tmp_path / bad.name).write_bytes(bad.data)
    # A source without any record is refused.
    if not bad.kept:
        suffix = bad.name[1:]
        (tmp_path / f"b{suffix}").write_bytes(SOUND[suffix])
    found = corpus(tmp_path, bad.source)
    assert read(found) == (bad.kept or ["sound"])
    assert found.dropped == {bad.reason: 1}
    [noted] = found.take_bad()
    assert (noted.reason, noted.path) == (bad.reason, str(tmp_path / bad.name))
    assert noted.place == f"{tmp_path / bad.name}{bad.place}"
    assert re.search(bad.detail, noted.detail)
    assert found.bad == found.take_bad() == []


@pytest.mark.parametrize("name", CASES)
def test_a_bad_record_can_end_the_run(tmp_path: Path, name: str) -> None:
    bad = CASES[name]
    path = tmp_path / bad.name
    path.write_bytes(bad.data)
    if not bad.kept:
        (tmp_path / f"b{bad.name[1:]}").write_bytes(SOUND[bad.name[1:]])
    found = corpus(tmp_path, bad.source, on_bad_record="fail")
    with pytest.raises(UserError) as caught:
        read(found)
    message = str(caught.value)
    assert message.startswith(f"{path}{bad.place}")
    assert f": {bad.reason}" in message
    assert message.endswith("repair the file, or set data.on_bad_record to skip")
    assert "\n" not in message


def write_table(folder: Path, kind: str, column: list[Any] | pyarrow.Array) -> dict[str, Any]:
    table = pyarrow.table({"text": column})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "a", row_group_size=2)
    else:
        with pyarrow.ipc.new_stream(str(folder / "a"), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return {"kind": kind}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_rows_of_tables_are_noted_by_number(tmp_path: Path, kind: str) -> None:
    raw = pyarrow.array([b"a", b"b\xff", None, b" ", b"e"])
    source = write_table(tmp_path, kind, raw.view(pyarrow.string()))
    found = corpus(tmp_path, source)
    assert read(found) == ["a", "b�", "e"]
    assert found.dropped == {MENDED: 1, NO_TEXT: 1, "empty": 1}
    assert [(bad.reason, bad.row, bad.place) for bad in found.take_bad()] == [
        (MENDED, 1, f"{tmp_path}/a (row 1)"),
        (NO_TEXT, 2, f"{tmp_path}/a (row 2)"),
    ]
    with pytest.raises(UserError, match=rf"{tmp_path}/a \(row 1\): invalid UTF-8 replaced \("):
        read(corpus(tmp_path, source, on_bad_record="fail"))


LONG = {
    "a.jsonl": (JSONL, '{"text": "%s"}', '{"text": "ok"}'),
    "a.txt": ({"document": "line"}, "%s", "ok"),
    "b.txt": ({"delimiter": "\n"}, "%s", "ok"),
    "a.jsonl.gz": (JSONL, '{"text": "%s"}', '{"text": "ok"}'),
    "a.csv": ({"kind": "csv"}, '"%s"', "ok"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_document_of_100_mb_is_passed_over(tmp_path: Path, name: str) -> None:
    source, record, good = LONG[name]
    data = f"text\n{good}\n{record % ('x y' * 33_000_000)}\n{good}\n".encode()
    data = data if name == "a.csv" else data[5:]
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    found = corpus(tmp_path, source, span_bytes=1 << 20)
    assert read(found) == ["ok", "ok"]
    assert len(found.bad) == 1 == sum(found.dropped.values())
    assert found.bad[0].line == (3 if name == "a.csv" else 2)


def test_the_limit_of_a_document_is_exact(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 50_000 + "\n" + "é" * 50_000 + "x\nok\n" + "é" * 50_001)
    found = corpus(tmp_path, {"document": "line"}, max_document_bytes=100_000, span_bytes=1 << 14)
    assert read(found) == ["é" * 50_000, "ok"]
    assert [(bad.reason, bad.line) for bad in found.bad] == [("too long", 2), ("too long", 4)]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "file"])
def test_the_limit_holds_for_rows_and_files(tmp_path: Path, kind: str) -> None:
    documents = ["é" * 50, "é" * 51, "ok"]
    if kind == "file":
        for i, text in enumerate(documents):
            (tmp_path / f"{i}.txt").write_text(text)
        source: dict[str, Any] = {}
    else:
        source = write_table(tmp_path, kind, documents)
    found = corpus(tmp_path, source, max_document_bytes=100)
    assert read(found) == ["é" * 50, "ok"]
    assert [bad.reason for bad in found.bad] == ["too long"]


def write_of_kind(folder: Path, kind: str, documents: list[str]) -> dict[str, Any]:
    """Odd records among them where the kind has any, so that not every block is read by the fast path."""
    if kind == "jsonl":
        rows = [
            json.dumps({"text": text, "n": i} | ({"note": "x" * 40_000} if i % 97 == 5 else {}))
            for i, text in enumerate(documents)
        ]
        (folder / "a.jsonl").write_text("\n".join(rows))
        return {"kind": "jsonl"}
    if kind == "csv":
        (folder / "a.csv").write_text("text,n\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(documents)))
        return {"kind": "csv"}
    separator = {"line": "\n", "delimiter": "<|>"}[kind]
    (folder / "a.txt").write_text(separator.join(documents))
    return {"kind": "text", "document": "line"} if kind == "line" else {"kind": "text", "delimiter": separator}


@pytest.mark.parametrize("limit", [1000, 40_000, 100_000])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "line", "delimiter"])
def test_which_records_are_too_long_does_not_depend_on_where_reading_begins(
    tmp_path: Path, kind: str, limit: int
) -> None:
    draw = random.Random(limit)
    sizes = draw.choices([50, 999, 1000, 1001, 39_999, 40_001, 70_000, 150_000], [40, 2, 2, 2, 1, 1, 1, 1], k=600)
    documents = ["" if draw.random() < 0.01 else f"{i} ".ljust(size, draw.choice("ab")) for i, size in enumerate(sizes)]
    if kind == "csv":
        documents = [text.replace("a" * 10, "aaaa\naaaaa") if len(text) < 60_000 else text for text in documents]
    found = corpus(tmp_path, write_of_kind(tmp_path, kind, documents), max_document_bytes=limit)

    def read_from(span: int, position: int | None) -> list[tuple[int, str]]:
        read = []
        while position is not None:
            block, position = found.read(found.spans[span], position)
            read += [(document.position, document.text) for document in block]
        return read

    whole = [read_from(i, span.start) for i, span in enumerate(found.spans)]
    texts = [text for part in whole for _, text in part]
    assert texts == [text for text in documents if 0 < len(text) <= limit]
    for i, part in enumerate(whole):
        for k in range(1, len(part), 7):
            assert read_from(i, part[k][0]) == part[k:]


def test_empty_records_are_counted_but_not_bad(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n  \n{"text": ""}\n{"text": " \\n"}\n')
    (tmp_path / "b.jsonl").write_bytes(b"")
    found = corpus(tmp_path, JSONL, on_bad_record="fail")
    assert read(found) == ["x"]
    assert found.dropped == {"empty": 4}
    assert found.bad == []


def test_notes_are_bounded_and_every_bad_record_is_counted(tmp_path: Path) -> None:
    data = "".join(f"bad {i}\n" if i % 2 else GOOD + "\n" for i in range(6 * NOTED))
    (tmp_path / "a.jsonl").write_text(data)
    found = corpus(tmp_path, JSONL, span_bytes=5000)
    assert len(read(found)) == found.dropped["not JSON"] == 3 * NOTED
    assert (found.bad_count, found.records_read) == (3 * NOTED, 6 * NOTED)
    assert [bad.line for bad in found.take_bad()] == list(range(2, 2 * NOTED + 1, 2))
    list(found.read(found.spans[-1], found.spans[-1].start))
    assert found.bad[-1].line == 6 * NOTED


def test_lines_are_numbered_right_in_any_order_of_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f"bad {i}\n" if i % 3 == 0 else GOOD + "\n" for i in range(1, 900)))
    found = corpus(tmp_path, JSONL, span_bytes=600)
    for span in [*found.spans[::-3], *found.spans]:
        found.read(span, span.start)
    assert all(bad.line is not None and bad.line % 3 == 0 for bad in found.bad)
    assert {bad.line for bad in found.bad} == set(range(3, 900, 3))


def test_bad_records_of_workers_reach_the_trainer(tmp_path: Path) -> None:
    good = [json.dumps({"text": text}) for text in texts(200)]
    data = [line if i % 3 else "torn {" for i, line in enumerate(good)]
    (tmp_path / "a.jsonl").write_text("\n".join([GOOD, *data]))
    settings: Callable[..., Any] = lambda **more: config(  # noqa: E731
        {"kind": "jsonl", "paths": [f"{tmp_path}/a.jsonl"]}, lanes=4, workers=2, span_bytes=2000, **more
    )
    directory = bytes_tokenizer(tmp_path)
    with TrainLoader(settings(), load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(8)
        assert loader.dropped["not JSON"] > 0
    with (
        TrainLoader(settings(on_bad_record="fail"), load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1) as loader,
        pytest.raises(UserError, match=rf"{tmp_path}/a.jsonl:\d+: not JSON \("),
    ):
        loader.take(8)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_bad_records_than_are_noted_are_counted(tmp_path: Path, workers: int) -> None:
    """They lie side by side, so that one block of a lane has more of them than are noted at a time."""
    lines = ["x"] * 8000 + [json.dumps({"text": text}) for text in texts(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines * 2))
    data = config({"kind": "jsonl", "paths": [f"{tmp_path}/a.jsonl"]}, lanes=2, workers=workers, span_bytes=1 << 20)
    with TrainLoader(data, load_tokenizer(bytes_tokenizer(tmp_path)), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(8)
        assert len(loader.bad) < loader.bad_count == loader.dropped["not JSON"]
        assert loader.bad_count % 8000 == 0


@pytest.mark.parametrize("block", [1, 7, 29, 64, 1 << 16])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_blank_lines_are_counted_wherever_blocks_end(
    tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.sources.readers.separated.BLOCK_BYTES", block)
    kinds = [GOOD, "", " ", GOOD, "", "", GOOD, GOOD + "\r", "\r", ""]
    data = b"\xef\xbb\xbf" + "\n".join(kinds * 5).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "mark only").write_bytes(b"\xef\xbb\xbf" if name != "a.jsonl.gz" else b"")
    found = corpus(tmp_path, JSONL if "jsonl" in name else {"document": "line"}, span_bytes=50)
    starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == 10)]
    expected = [start for start, line in zip(starts, kinds * 5, strict=True) if line.strip()]
    assert [document.position for document in found.documents()] == expected
    # A blank last line without newline is no line; a text of nothing but a byte order mark is an empty one.
    assert found.dropped == {"empty": 29 + (name == "a.txt")}
    assert found.bad == []


def test_a_finite_set_tells_of_all_of_them(tmp_path: Path) -> None:
    # More than are noted at a time, and no document among them.
    (tmp_path / "a.jsonl").write_text("x\n" * 3000 + f"{GOOD}\n" * 90)
    data = config({"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}, order="finite")
    told: list[ReadReport] = []
    for _ in range(2):
        open_samples(data, BytesTokenizer(), CausalObjective(), seed=0, cache=tmp_path / "cache", met=told.append)
    assert (told[0].dropped, told[0].bad_count, told[0].records) == ({"not JSON": 3000}, 3000, 3090)
    assert [bad.line for bad in told[0].bad] == list(range(1, 3001))
    assert told[1] == ({}, [], 0, 0)
