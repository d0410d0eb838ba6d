"""Files, records and the held-out split, with good and bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.sources.corpus import Corpus
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import (
    WRITERS,
    bytes_tokenizer,
    config,
    texts,
    write_files,
    write_jsonl,
)


def corpus(*sources: dict[str, Any], **settings: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate(source) for source in sources], **settings)


def read(found: Corpus, held_out: bool = False) -> list[str]:
    return [document.text for document in found.documents(held_out=held_out)]


def test_files_are_listed_in_one_order_with_names_of_their_own(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/10.txt", "a/9.txt", "a/skip.min.txt", "c/__pycache__/x.txt", "d/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    os.symlink(tmp_path / "a" / "9.txt", tmp_path / "a" / "again.txt")
    found = corpus(
        {"paths": [f"{tmp_path}/**/*.txt", f"{tmp_path}/d/notes.md"], "exclude": ["*.min.txt", "__pycache__"]}
    )
    assert [file.name for file in found.files] == ["a/10.txt", "a/9.txt", "b/2.txt", "notes.md"]


def test_the_standard_library_has_a_name_of_its_own() -> None:
    found = corpus({"paths": ["{python_stdlib}/json/*.py"]})
    assert "decoder.py" in [file.name for file in found.files]


@settings(deadline=None)
@given(
    lines=st.lists(st.text(alphabet="ab\r é世\x0b\x85\u2028", max_size=12), min_size=1, max_size=30),
    span_bytes=st.integers(1, 40),
    last_newline=st.booleans(),
)
def test_each_line_is_read_once_however_spans_fall(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], span_bytes: int, last_newline: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes("\n".join(["start", *lines]).encode() + b"\n" * last_newline)
    found = corpus({"paths": [str(path)], "document": "line"}, span_bytes=span_bytes)
    expected = [line.rstrip("\r") for line in ["start", *lines] if line.strip()]
    assert read(found) == expected
    # Any document's own position is a place to start from.
    for span in found.spans:
        documents, _ = found.read(span, span.start)
        for document in documents:
            assert found.read(span, document.position)[0][0] == document


def test_the_name_of_a_file_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    for name in ("[ab].txt", "a.txt", "b?.txt", "bc.txt"):
        (tmp_path / name).write_text(name)
    for paths, names in {
        ("[ab].txt",): ["[ab].txt"],
        ("b?.txt", "[a].txt"): ["b?.txt", "a.txt"],
        ("[[]*", "?.txt"): ["[ab].txt", "a.txt"],
    }.items():
        assert read(corpus({"paths": [f"{tmp_path}/{path}" for path in paths]})) == names


def test_a_line_longer_than_blocks_and_spans_stays_whole(tmp_path: Path) -> None:
    long = "x" * 300_000
    (tmp_path / "a.txt").write_text(f"one\n{long}\ntwo\n")
    found = corpus({"paths": [f"{tmp_path}/a.txt"], "document": "line"}, span_bytes=1000)
    assert read(found) == ["one", long, "two"]


def test_bad_json_lines_cost_only_themselves_and_are_counted(tmp_path: Path) -> None:
    rows = ['{"text": "good 1"}', '{"text": "torn', "", '{"text": 5}', '{"other": "x"}', '{"text": null}', "[1]"]
    data = "\n".join([*rows, '{"text": " "}', '{"text": "good 2"}']).encode() + b'\n{"text": "bad \xff byte"}\n{"te'
    (tmp_path / "a.jsonl").write_bytes(data)
    found = corpus({"kind": "jsonl", "paths": [f"{tmp_path}/a.jsonl"]})
    assert read(found) == ["good 1", "good 2", "bad � byte"]
    assert found.dropped == {"not JSON": 2, "empty": 2, "no text in the field": 4, "invalid UTF-8 replaced": 1}


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    found = corpus({"paths": [f"{tmp_path}/a.txt"]})
    assert read(found) == ["caf�"]
    assert found.dropped == {"invalid UTF-8 replaced": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_a_template_joins_fields(tmp_path: Path, kind: str) -> None:
    rows = [{"title": f"T{i}", "body": f"B{i}", "n": i} for i in range(5)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a")
    else:
        (tmp_path / "a").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": kind, "paths": [f"{tmp_path}/a"], "field": "# {title}\n{body}"}
    found = corpus({**source, "name": "json"} if kind == "datasets" else source)
    assert read(found) == [f"# T{i}\nB{i}" for i in range(5)]


@pytest.mark.parametrize("field", ["{body:0>3}|", "{body:.99999999}|", "{body:9<3.1000001}|"])
def test_widths_within_reason_pad(tmp_path: Path, field: str) -> None:
    (tmp_path / "a").write_text('{"body": "xy"}\n')
    assert read(corpus({"kind": "jsonl", "paths": [f"{tmp_path}/a"], "field": field})) == [field.format(body="xy")]


@pytest.mark.parametrize(
    "setting",
    [{"cleaning": [{"step": "whitespace", "max_blank_lines": 2**32 - 2}]}, {"shuffle_buffer": 10**26}],
)
def test_numbers_that_nothing_can_hold_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to"):
        config({"paths": ["x"]}, **setting)


def test_parquet_skips_nulls_and_numbers_rows_over_groups(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", None, "b", "", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = corpus({"kind": "parquet", "paths": [f"{tmp_path}/a.parquet"]})
    assert [(document.position, document.text) for document in found.documents()] == [(0, "a"), (2, "b"), (4, "c")]
    assert found.read(found.spans[1], 3)[0] == []


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("values", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.string()], ids=str)
def test_dictionaries_of_bytes_are_read_as_plain_bytes_are(tmp_path: Path, kind: str, values: pyarrow.DataType) -> None:
    rows = [b"one", b"two", None, b"one", "世界".encode(), b""]
    plain = pyarrow.array(rows, pyarrow.binary())
    column = plain.cast(values).dictionary_encode()
    if values != pyarrow.string():
        column = pyarrow.concat_arrays([column, pyarrow.array([b"caf\xe9"], values).dictionary_encode()])
    table = pyarrow.table({"text": column})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "a")
        assert pyarrow.types.is_dictionary(pyarrow.parquet.read_schema(tmp_path / "a").field("text").type)
    else:
        with pyarrow.ipc.new_stream(str(tmp_path / "a"), table.schema) as writer:
            writer.write_table(table)
    found = corpus({"kind": kind, "paths": [f"{tmp_path}/a"]})
    mended = ["caf�"] if values != pyarrow.string() else []
    assert read(found) == ["one", "two", "one", "世界", *mended]
    wrong = {"empty": 1, "no text in the field": 1} | ({"invalid UTF-8 replaced": 1} if mended else {})
    assert found.dropped == wrong


@pytest.mark.parametrize("kind", list(WRITERS))
def test_the_held_out_split_is_a_partition_of_its_share(tmp_path: Path, kind: str) -> None:
    documents = [text.replace("\n", " ") for text in texts(400)]
    source = WRITERS[kind](tmp_path, documents)
    kept, held = (read(corpus(source, holdout=0.25), held_out) for held_out in (False, True))
    assert sorted(kept + held) == sorted(documents)
    assert 65 <= len(held) <= 135
    more = read(corpus(source, holdout=0.5), True)
    assert set(held) < set(more)


def test_held_out_files_do_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    here, there = (corpus(write_files(tmp_path / name, texts(60)), holdout=0.3) for name in ("a", "b"))
    assert read(here, True) == read(there, True) != []
    assert here.digest == there.digest
    assert [document.id for document in here.documents()] == [document.id for document in there.documents()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"paths": ["{d}/none*.txt"]}, r"data.sources\[0\].paths: no file matches .*none\*.txt"),
        ({"paths": ["{d}"]}, r"is a folder; write .*/\*\*/\*"),
        ({"paths": ["{d}/"]}, r"is a folder; write .*[^/]/\*\*/\*"),
        ({"paths": []}, r"data.sources\[0\].paths is empty"),
        ({"paths": ["{d}/a.txt"], "exclude": ["*.txt"]}, r"exclude leaves none of the 1 files"),
        ({"paths": ["{d}/empty.txt"]}, r"data.sources\[0\] holds no text: its 1 files \(.*empty.txt\) are empty"),
        ({"kind": "jsonl", "paths": ["{d}/a.jsonl"]}, r"a.jsonl has no field 'text' but 'body', 'n'; set data.sources"),
        ({"kind": "jsonl", "paths": ["{d}/a.jsonl"], "field": "{body"}, r"'\{body' is not a valid template"),
        *(
            ({"kind": "jsonl", "paths": ["{d}/a.jsonl"], "field": field}, r"'\{body.*\}' is not a valid template: ")
            for field in ("{body!z}", "{body:d}", "{body:{n}}", "{body:{body}}")
        ),
        *(
            (
                {"kind": "jsonl", "paths": ["{d}/a.jsonl"], "field": field},
                r"not a valid template: a width of \d+ is above",
            )
            for field in ("{body:>99999999999}", "{body:1000001}", "{body:x<" + 5000 * "9" + ".3}")
        ),
        (
            {"kind": "jsonl", "paths": ["{d}/list.jsonl"]},
            r"list.jsonl is one JSON array and not JSON lines",
        ),
        ({"kind": "parquet", "paths": ["{d}/a.txt"]}, r"cannot read .*a.txt: .*arquet.*; repair it or exclude it"),
        ({"kind": "parquet", "paths": ["{d}/a.parquet"]}, r"a.parquet has no field 'text' but 'body'"),
        ({"kind": "datasets"}, r"data.sources\[0\].name is missing"),
        (
            {"kind": "datasets", "name": "json", "paths": ["{d}/a.jsonl"]},
            r"data set 'json' has no field 'text' but 'body'",
        ),
        ({"kind": "datasets", "name": "{d}/nothing"}, r"cannot open data set"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "a.jsonl").write_text('{"body": "x", "n": 1}\n')
    (tmp_path / "list.jsonl").write_text('["x"]\n')
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    filled = json.loads(json.dumps(source).replace("{d}", str(tmp_path)))
    with pytest.raises(UserError, match=message) as caught:
        corpus(filled)
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    source = WRITERS["parquet"](tmp_path, texts(200))
    path = tmp_path / "rows.parquet"
    whole = path.read_bytes()
    found = corpus(source)
    path.write_bytes(whole[:100] + b"\0" * 1000 + whole[1100:])
    with pytest.raises(UserError, match=r"cannot read .*rows.parquet"):
        read(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "1.jsonl").write_text('{"text": "other"}\n' * 90), r"1.jsonl changed since"),
        (lambda folder: (folder / "0.jsonl").unlink(), r"has 1 files, but had 2 .* begins at .*1.jsonl, before"),
        (lambda folder: (folder / "1.jsonl").unlink(), r"1 files, but had 2 .*, of which those behind .*0.jsonl are"),
        (
            lambda folder: (folder / "2.jsonl").write_text('{"text": "new"}\n' * 90),
            r"has 3 files, but had 2 .* begins at .*2.jsonl, which was not among them",
        ),
        (
            lambda folder: (folder / "0.jsonl").rename(folder / "00.jsonl"),
            r"00.jsonl changed since .*; it has other contents or another name, or is",
        ),
        (
            lambda folder: (folder / "0.jsonl").rename(folder / "3.jsonl"),
            r"3.jsonl changed since .*; it has other contents or another name, or is",
        ),
    ],
)
def test_a_resume_on_changed_files_names_the_file(tmp_path: Path, change: Any, message: str) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(90)), lanes=2)
    directory = bytes_tokenizer(tmp_path)
    with TrainLoader(data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(4)
        cursor = merge_cursors([loader.cursor()])
    change(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        TrainLoader(data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1, first_sample=4, cursor=cursor)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ("acb", r"^the files of data.sources stand in another order than when the run was saved, from .*/c on; "),
        ("ab", r"has 2 files, but had 3 when the run was saved, of which those behind .*/b are missing; "),
        ("a", r"has 1 files, but had 3 when the run was saved, of which those behind .*/a are missing; "),
        ("ac", r"has 2 files, .* begins at .*/c, before which a file is missing; "),
        ("ba", r"has 2 files, .* begins at .*/b; "),
        ("acde", r"has 4 files, .* begins at .*/c, before which a file is missing; "),
        ("abcd", r"has 4 files, .* begins at .*/d, which was not among them as it is now; "),
        ("dabc", r"has 4 files, .* begins at .*/d, which was not among them as it is now; "),
        ("abd", r"^[^ ]*/d changed since .* saved; it has other contents or another name, or is another file; "),
        ("bcd", r"^[^ ]*/d changed since .* saved; it has other contents or another name, or is another file; "),
    ],
)
def test_what_became_of_the_files_is_said_truly(tmp_path: Path, now: str, message: str) -> None:
    for name in "abcde":
        (tmp_path / name).write_text(f"text of {name}")
    before, after = (corpus({"paths": [f"{tmp_path}/{name}" for name in names]}) for names in ("abc", now))
    with pytest.raises(UserError, match=message):
        after.check({"source": before.digest, "files": before.fingerprints()})


@pytest.mark.parametrize(
    ("changed", "seed", "first", "message"),
    [
        ({"lanes": 4}, 0, 4, r"saved with data.lanes = 2, but it is 4 now"),
        ({"sequence_length": 16}, 0, 4, r"data.sequence_length = 32, but it is 16"),
        ({}, 1, 4, r"run.seed = 0, but it is 1"),
        ({}, 0, 6, r"cursor is at sample 4, but the run goes on at sample 6"),
        ({"holdout": 0.5}, 0, 4, r"data.holdout = 0.0, but it is 0.5"),
    ],
)
def test_a_cursor_of_other_settings_is_refused(
    tmp_path: Path, changed: dict[str, Any], seed: int, first: int, message: str
) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(90)), lanes=2)
    directory = bytes_tokenizer(tmp_path)
    with TrainLoader(data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(4)
        cursor = loader.cursor()
    with pytest.raises(UserError, match=message):
        TrainLoader(
            data.model_copy(update=changed),
            load_tokenizer(directory),
            seed=seed,
            dp_rank=0,
            dp_size=1,
            first_sample=first,
            cursor=cursor,
        )


def test_dropped_documents_reach_the_loader_from_its_workers(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) if i % 3 else "torn {" for i, text in enumerate(texts(200))]
    (tmp_path / "a.jsonl").write_text("\n".join(['{"text": "first"}', *lines]))
    data = config({"kind": "jsonl", "paths": [f"{tmp_path}/a.jsonl"]}, lanes=4, workers=2, span_bytes=2000)
    with TrainLoader(data, load_tokenizer(bytes_tokenizer(tmp_path)), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(8)
        assert loader.dropped["not JSON"] > 0
