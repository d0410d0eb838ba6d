"""Every kind of source against an independent reading of the same files, from every position, however spans fall."""

from __future__ import annotations

import bisect
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.document import Document
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span
from tests.data_pipeline.corpora import texts


class Case(NamedTuple):
    """A source and what an independent reader makes of its file."""

    source: dict[str, Any]
    pairs: list[tuple[str, str | None]]


def rows(count: int = 120) -> list[dict[str, Any]]:
    """Records with everything that a format has to escape."""
    found = []
    for i, words in enumerate(texts(count, longest=12)):
        text = f'{words}\t"{i}", x' + ("\r\nlast line" if i % 5 == 0 else "")
        found.append({"n": i, "text": text, "summary": f"short\n{i}, é"})
    return found


def flat(count: int = 120) -> list[dict[str, Any]]:
    return [{name: " ".join(str(value).split()) for name, value in row.items()} for row in rows(count)]


def jsonl_bytes(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0).encode() + b"\n" for row in records)


def pairs_of(lines: list[bytes] | list[str]) -> list[tuple[str, str | None]]:
    parsed = [json.loads(line) for line in lines]
    return [(row["text"], row["summary"]) for row in parsed]


def lines_case(folder: Path) -> Case:
    path = folder / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(row["text"] for row in flat()).encode() + b"\n\n \nlast")
    read = path.read_text(encoding="utf-8-sig").split("\n")
    return Case({"document": "line"}, [(line, None) for line in read if line.strip()])


def delimiter_case(folder: Path, delimiter: str = "<|endoftext|>") -> Case:
    path = folder / "a.txt"
    path.write_text(delimiter.join(row["text"] for row in rows()) + delimiter, encoding="utf-8", newline="")
    parts = path.read_bytes().decode().split(delimiter)
    return Case({"delimiter": delimiter}, [(part, None) for part in parts if part.strip()])


def file_case(folder: Path) -> Case:
    path = folder / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\r\ndocument"))
    return Case({}, [(gzip.open(path).read().decode(), None)])


def jsonl_case(folder: Path) -> Case:
    path = folder / "a.jsonl"
    path.write_bytes(jsonl_bytes(rows()))
    return Case({"kind": "jsonl", "target_field": "summary"}, pairs_of(path.read_bytes().splitlines()))


def gzip_case(folder: Path) -> Case:
    path = folder / "a.jsonl.gz"
    data = jsonl_bytes(rows())
    members = [data[i : i + 3000] for i in range(0, len(data), 3000)]
    path.write_bytes(b"".join(gzip.compress(member) + bytes(i % 3) for i, member in enumerate(members)))
    return Case({"kind": "jsonl", "target_field": "summary"}, pairs_of(gzip.open(path).readlines()))


def zstd_case(folder: Path, frame: int = 3000, known_size: bool = True) -> Case:
    path = folder / "a.jsonl.zst"
    data = jsonl_bytes(rows())
    compressor = zstandard.ZstdCompressor(write_content_size=known_size, write_checksum=known_size)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00note"
    frames = [compressor.compress(data[i : i + frame]) for i in range(0, len(data), frame)]
    path.write_bytes(skippable.join([*frames, b""]))
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()), read_across_frames=True)
    return Case({"kind": "jsonl", "target_field": "summary"}, pairs_of(stream.read().splitlines()))


def csv_case(folder: Path, suffix: str = "", newline: str = "\r\n") -> Case:
    path = folder / f"a.csv{suffix}"
    with gzip.open(path, "wt", newline="") if suffix else open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["n", "text", "summary"], lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows())
    with gzip.open(path, "rt", newline="") if suffix else open(path, newline="", encoding="utf-8") as file:
        read = [(row["text"], row["summary"]) for row in csv.DictReader(file)]
    return Case({"kind": "csv", "target_field": "summary"}, read)


def tsv_case(folder: Path) -> Case:
    path = folder / "a.tsv"
    lines = ["text\tsummary"] + [f'"{row["text"]}\t{row["summary"]}"' for row in flat()]
    path.write_text("\n".join(lines), encoding="utf-8")
    read = [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").split("\n")[1:]]
    return Case({"kind": "tsv", "quote": "", "target_field": "summary"}, read)  # type: ignore[arg-type]


def table_case(folder: Path, write: Callable[[pyarrow.Table, Path], Any], kind: str) -> Case:
    path = folder / "a"
    write(pyarrow.Table.from_pylist(rows()), path)
    if kind == "parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        data = path.read_bytes()
        table = (pyarrow.ipc.open_file if data.startswith(b"ARROW1") else pyarrow.ipc.open_stream)(data).read_all()
    read = list(zip(table["text"].to_pylist(), table["summary"].cast(pyarrow.string()).to_pylist(), strict=True))
    return Case({"kind": kind, "target_field": "summary"}, read)


def write_arrow(table: pyarrow.Table, path: Path, opener: Any, **options: Any) -> None:
    with opener(str(path), table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=17)


def with_dictionary(table: pyarrow.Table) -> pyarrow.Table:
    return table.set_column(2, "summary", table["summary"].dictionary_encode())


def with_views(table: pyarrow.Table) -> pyarrow.Table:
    binary, view = table["summary"].cast(pyarrow.large_binary()), table["text"].cast(pyarrow.string_view())
    return table.set_column(2, "summary", binary).set_column(1, "text", view)


CASES: dict[str, Callable[[Path], Case]] = {
    "lines": lines_case,
    "delimiter": delimiter_case,
    "file": file_case,
    "jsonl": jsonl_case,
    "gzip": gzip_case,
    "zstd": zstd_case,
    "zstd in one frame": lambda folder: zstd_case(folder, 1 << 30),
    "zstd of unknown size": lambda folder: zstd_case(folder, known_size=False),
    "csv": csv_case,
    "csv without returns": lambda folder: csv_case(folder, newline="\n"),
    "csv.gz": lambda folder: csv_case(folder, ".gz"),
    "tsv": tsv_case,
    "parquet": lambda folder: table_case(
        folder, lambda table, path: pyarrow.parquet.write_table(table, path, row_group_size=17), "parquet"
    ),
    "arrow file": lambda folder: table_case(
        folder, lambda table, path: write_arrow(table, path, pyarrow.ipc.new_file), "arrow"
    ),
    "arrow stream": lambda folder: table_case(
        folder, lambda table, path: write_arrow(table, path, pyarrow.ipc.new_stream), "arrow"
    ),
    "arrow file, compressed": lambda folder: table_case(
        folder, lambda table, path: write_arrow(table, path, pyarrow.ipc.new_file, compression="zstd"), "arrow"
    ),
    "arrow stream with dictionary": lambda folder: table_case(
        folder, lambda table, path: write_arrow(with_dictionary(table), path, pyarrow.ipc.new_stream), "arrow"
    ),
    "arrow file of an old version": lambda folder: table_case(
        folder, lambda table, path: write_arrow(table, path, pyarrow.ipc.new_file, use_legacy_format=True), "arrow"
    ),
    "arrow views and bytes": lambda folder: table_case(
        folder, lambda table, path: write_arrow(with_views(table), path, pyarrow.ipc.new_stream), "arrow"
    ),
}


def corpus(folder: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [f"{folder}/*"], **source})], **options)


def pairs(documents: list[Document]) -> list[tuple[str, str | None]]:
    return [(document.text, document.target) for document in documents]


def read_span(found: Corpus, span: Span) -> list[Document]:
    documents, position = found.read(span, span.start)
    while position is not None:
        more, position = found.read(span, position)
        documents += more
    return documents


@pytest.mark.parametrize("name", CASES)
def test_each_record_is_read_once_in_order_however_spans_fall(tmp_path: Path, name: str) -> None:
    case = CASES[name](tmp_path)
    for span_bytes in (1 << 20, 4096, 700, 61, 7):
        found = corpus(tmp_path, case.source, span_bytes=span_bytes)
        documents = [document for span in found.spans for document in read_span(found, span)]
        assert pairs(documents) == case.pairs
        assert len({document.id for document in documents}) == len(documents)
        assert found.bad == []
        assert [text for block in found.texts() for text in block] == [text for text, _ in case.pairs]


@pytest.mark.parametrize("name", CASES)
def test_reading_starts_at_the_first_record_from_any_position_on(tmp_path: Path, name: str) -> None:
    case = CASES[name](tmp_path)
    found = corpus(tmp_path, case.source, span_bytes=3000)
    step = 7 if found.can_enter(found.spans[0]) else 97
    for span in found.spans:
        documents = read_span(found, span)
        places = [document.position for document in documents]
        end = min(span.stop, places[-1] + 20 if places else span.start)
        for position in [*range(span.start, end, step), *places]:
            first = bisect.bisect_left(places, position)
            following, next_position = found.read(span, position)
            while not following and next_position is not None:
                following, next_position = found.read(span, next_position)
            assert following[:1] == documents[first : first + 1]


@pytest.mark.parametrize("name", CASES)
def test_another_process_goes_on_at_any_block(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("separated", "delimited", "tables"):
        monkeypatch.setattr(f"data_pipeline.sources.readers.{module}.BLOCK_BYTES", 400)
    case = CASES[name](tmp_path)
    found = corpus(tmp_path, case.source, span_bytes=5000)
    read: list[Document] = []
    for span in found.spans:
        position: int | None = span.start
        while position is not None:
            documents, position = corpus(tmp_path, case.source, span_bytes=5000).read(span, position)
            read += documents
    assert pairs(read) == case.pairs


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(st.text(alphabet="ab\né", max_size=6), min_size=1, max_size=20),
    delimiter=st.sampled_from(["\n\n", "a", "aba", "é", "\na\n", "<|endoftext|>"]),
    span_bytes=st.integers(1, 30),
)
def test_a_delimiter_that_overlaps_itself_cuts_alike_from_everywhere(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], delimiter: str, span_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("delimited")
    data = ("start" + delimiter.join(pieces)).encode()
    (folder / "a.txt").write_bytes(data)
    mark = delimiter.encode()
    # From the definition: a record begins at 0 and behind every place where the delimiter stands.
    starts = [0, *(i + len(mark) for i in range(len(data)) if data.startswith(mark, i))]
    ends = [*(start - len(mark) for start in starts[1:]), len(data)]
    parts = [(start, data[start : max(start, end)].decode()) for start, end in zip(starts, ends, strict=True)]
    expected = [(start, text) for start, text in parts if text.strip()]
    found = corpus(folder, {"delimiter": delimiter}, span_bytes=span_bytes)
    assert [(document.position, document.text) for document in found.documents()] == expected


@settings(deadline=None, max_examples=80)
@given(
    table=st.lists(
        st.tuples(st.text(alphabet='ab",\r\né ', max_size=8), st.text(alphabet='x"\n,', min_size=1)), max_size=9
    ),
    span_bytes=st.integers(1, 60),
)
def test_csv_says_what_the_standard_library_says(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]], span_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "other"), ("first", "x"), *table])
    with open(path, newline="", encoding="utf-8") as file:
        expected = [row["text"] for row in csv.DictReader(file) if row["text"].strip()]
    assert read_all(corpus(path.parent, {"kind": "csv"}, span_bytes=span_bytes)) == expected


def read_all(found: Corpus) -> list[str]:
    return [document.text for document in found.documents()]


def test_a_small_source_spreads_over_many_lanes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(rows(3000)))
    size = (tmp_path / "a.jsonl").stat().st_size
    source = {"kind": "jsonl"}
    assert len(corpus(tmp_path, source).spans) == 1
    spread = corpus(tmp_path, source, lanes=16)
    assert 64 <= len(spread.spans) <= 65
    assert max(span.stop - span.start for span in spread.spans) <= -(-size // 64)
    assert len(corpus(tmp_path, source, lanes=10_000).spans) == -(-size // 4096)
    assert len(corpus(tmp_path, source, lanes=16, span_bytes=1000).spans) == -(-size // 1000)
    assert spread.digest != corpus(tmp_path, source).digest
    assert list(spread.documents()) == list(corpus(tmp_path, source).documents())


def test_quoted_csv_spreads_too(tmp_path: Path) -> None:
    case = csv_case(tmp_path)
    found = corpus(tmp_path, case.source, span_bytes=500)
    assert len(found.spans) > 10
    assert [span.start for span in found.spans[1:]] == [span.stop for span in found.spans[:-1]]


def test_saved_data_sets_are_read_as_arrow(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(rows()).save_to_disk(str(tmp_path))
    reloaded = datasets.load_from_disk(str(tmp_path))
    found = corpus(tmp_path, {"kind": "arrow", "paths": [f"{tmp_path}/*.arrow"], "target_field": "summary"})
    assert pairs(list(found.documents())) == [(row["text"], row["summary"]) for row in reloaded]


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "arrow stream"])
def test_a_template_serves_for_both_texts_of_a_pair(tmp_path: Path, name: str) -> None:
    case = CASES[name](tmp_path)
    source = {**case.source, "field": "# {text}\n{{{summary}}}", "target_field": "{summary}!"}
    expected = [(f"# {text}\n{{{target}}}", f"{target}!") for text, target in case.pairs]
    assert pairs(list(corpus(tmp_path, source).documents())) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"target_field": "x"}, r"sources\[0\]\.target_field is 'x', but kind text has no fields"),
        ({"delimiter": "x", "document": "line"}, r"delimiter is 'x', but .* has document: line; leave out"),
        ({"delimiter": "x", "kind": "jsonl"}, r"delimiter is 'x', but .* has kind jsonl"),
        ({"kind": "csv", "field": "{text[0]}"}, r"'text\[0\]' is no plain field name"),
        ({"kind": "csv", "field": "{text} {}"}, r"'' is no plain field name"),
        (
            {"kind": "csv", "target_field": "aim"},
            r"target_field: .*a\.csv has no field 'aim' but 'n', 'text', 'summary'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    csv_case(tmp_path)
    with pytest.raises(UserError, match=message):
        corpus(tmp_path, source)
