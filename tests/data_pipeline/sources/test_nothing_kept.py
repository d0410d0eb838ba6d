"""Sources that give no document are mistakes, whatever the reason: named with the file, by every command."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner, Result

from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import LengthStep
from data_pipeline.config import SourceConfig
from data_pipeline.finite.format import IndexedDataset
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.open_samples import open_samples
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers.storage import PlainBytes
from data_pipeline.tokenizer import BytesTokenizer
from llmscale.cli import cli
from tests.data_pipeline.corpora import config

ROWS = [{"text": f"document {i}", "n": i} for i in range(60)]
LINES = [json.dumps(row) for row in ROWS]


def corpus(path: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [str(path)], **source})], **options)


def read(path: Path, source: dict[str, Any]) -> list[str]:
    return [document.text for document in corpus(path, source).documents()]


def refusal(path: Path, source: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        corpus(path, source, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ARRAYS = {
    "one line": json.dumps(ROWS),
    "one short line": json.dumps(ROWS[:1]),
    "one line of many blocks": json.dumps([{"text": "x" * 400}] * 8000),
    "an object a line": "[\n" + ",\n".join(LINES) + "\n]\n",
    "an object a line, brackets beside them": "[" + ",\n".join(LINES) + "]",
    "two objects": "[\n" + ",\n".join(LINES[:2]) + "\n]",
    "one line with NaN": json.dumps([*ROWS, {"text": float("nan"), "n": float("-inf")}]),
    "one line of many blocks with NaN": json.dumps([{"text": "x" * 400, "n": float("nan")}] * 8000),
    "commas in front": "[" + LINES[0] + "\n" + "".join(f",{line}\n" for line in LINES[1:]) + "]",
    "indented": json.dumps(ROWS, indent=2),
    "indented by tabs": json.dumps(ROWS, indent="\t"),
    "indented, of many blocks": json.dumps([{"text": "x" * 400}] * 4000, indent=1),
    "with a mark and space": "\ufeff \n\n" + json.dumps(ROWS),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_no_json_lines_however_it_is_written(tmp_path: Path, name: str, suffix: str) -> None:
    assert json.loads(ARRAYS[name].removeprefix("\ufeff"))
    path = tmp_path / f"a.jsonl{suffix}"
    data = ARRAYS[name].encode()
    path.write_bytes(gzip.compress(data, 1) if suffix else data)
    assert "is one JSON array" in refusal(path, {"kind": "jsonl"})
    # Beside sound files as well, of which it may be a small part.
    (tmp_path / "b.jsonl").write_text("\n".join(LINES))
    with pytest.raises(UserError, match=f"{path.name} is one JSON array"):
        corpus(tmp_path / "*", {"kind": "jsonl"})


def test_an_array_is_found_behind_any_buffer_and_a_long_record_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.sources.readers.json_layout.HEAD_BYTES", 64)
    path = tmp_path / "a.jsonl"
    for size in (*range(50, 80), 127, 128, 129, 1000):
        array = json.dumps(["x" * size])
        for behind in ("", "\n", "\n \n", "\n" * 200):
            path.write_text(array + behind)
            assert "is one JSON array" in refusal(path, {"kind": "jsonl"})
            path.write_text(array + behind.rstrip() + "\n" + behind + LINES[0])
            assert read(path, {"kind": "jsonl"}) == ["document 0"]
            path.write_text(LINES[0] + "\n" + array + behind)
            assert read(path, {"kind": "jsonl"}) == ["document 0"]


@pytest.mark.parametrize("kind", ["pretty", "pretty, one object", "pretty and long", "commas", "commas but the last"])
def test_other_layouts_are_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jsonl"
    data = {
        "pretty": "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "pretty, one object": json.dumps({"text": "x", "data": [{"text": "y"}]}, indent=2),
        "pretty and long": json.dumps({"text": "x", "data": [{"text": "y" * 99}] * 20_000}, indent=1),
        "commas": "".join(f"{line},\n" for line in LINES),
        "commas but the last": ",\n".join(LINES),
    }[kind]
    path.write_text(data)
    # Values of an object that is one list after another have commas as well.
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": ["x"] * 99}, indent=1))
    assert "over several lines" in refusal(tmp_path / "b.jsonl", {"kind": "jsonl"})
    assert ("comma behind" if "commas" in kind else "over several lines") in refusal(path, {"kind": "jsonl"})


ODD = {
    "another object": '{"error": "404"}',
    "a list": '["text"]',
    "null": "null",
    "a number": "12",
    "torn": '{"text": "to',
    "torn at a comma": '{"text": "to",',
    "a comma behind": '{"text": "x"},',
    "an opened list": "[",
    "no JSON": "<html>"[1:],
    "nothing": "",
    "text is null": '{"text": null}',
    "text is a list": '{"text": ["a", "b"]}',
}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_costs_itself_alone_wherever_it_stands(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for place in (0, 1, 2, 3):
        data = "\n".join([*LINES[:place], ODD[name], *LINES[place:3]]).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        found = corpus(path, {"kind": "jsonl"})
        assert [document.text for document in found.documents()] == [row["text"] for row in ROWS[:3]]
        assert sum(found.dropped.values()) == (name != "nothing" or place < 3)


def test_layouts_do_not_depend_on_order(tmp_path: Path) -> None:
    """Every order of some odd and some sound lines gives the same documents, or is refused alike."""
    path = tmp_path / "a.jsonl"
    for odd in (["{", '"text": "x"', "}"], ['{"error": 1}'] * 3, ['{"text": "x"},'] * 2, ["[1]", "2"]):
        lines = [*odd, *LINES[:4]]
        draw = random.Random(0)
        for _ in range(30):
            draw.shuffle(lines)
            path.write_text("\n".join(lines))
            assert sorted(read(path, {"kind": "jsonl"})) == [row["text"] for row in ROWS[:4]]


def test_a_field_that_the_first_megabytes_lack_is_looked_for_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    others = json.dumps({"other": "x" * 999}) + "\n"
    path.write_text(others * 2500 + LINES[0])
    assert read(path, {"kind": "jsonl"}) == ["document 0"]
    path.write_text(others * 2500)
    assert "has no field 'text' but 'other'" in refusal(path, {"kind": "jsonl"})


def table(kind: str, column: pyarrow.Array, path: Path) -> None:
    made = pyarrow.table({"text": column})
    if kind == "parquet":
        pyarrow.parquet.write_table(made, path)
    else:
        with pyarrow.ipc.new_file(str(path), made.schema) as writer:
            writer.write_table(made)


STRINGS = pyarrow.string()
NOTHING: dict[str, tuple[dict[str, Any], Any, str]] = {
    "empty files": ({}, b"", "are empty, or have no rows"),
    "blank text": ({}, b" \n\n", "1 empty"),
    "blank lines": ({"document": "line"}, b"\n \n", "2 empty"),
    "a mark alone": ({}, b"\xef\xbb\xbf", "1 empty"),
    "null": ({"kind": "jsonl"}, b'{"text": null}\n' * 4, "4 no text in the field.*'text' is null"),
    "lists": ({"kind": "jsonl"}, b'{"text": ["a", "b"]}\n' * 4, "4 no text in the field.*'text' is a list"),
    "turns": ({"kind": "jsonl"}, b'{"messages": []}\n', "no field 'text' but 'messages'"),
    "empty strings": ({"kind": "jsonl"}, b'{"text": ""}\n' * 3, "3 empty"),
    "no targets": ({"kind": "jsonl", "target_field": "aim"}, b'{"text": "a", "aim": null}', "'aim' is null"),
    "no JSON": ({"kind": "jsonl"}, b"text\ntext", "2 not JSON"),
    "a header alone": ({"kind": "csv"}, b"id,text\n", "are empty, or have no rows"),
    "rows of other lengths": ({"kind": "csv"}, b"id,text\n1\n2\n", "2 malformed row.*1 fields where the header has 2"),
    "cells without text": ({"kind": "tsv"}, b"id\ttext\n1\t\n2\t \n", "2 empty"),
    "no parquet row": ({"kind": "parquet"}, pyarrow.array([], STRINGS), "are empty, or have no rows"),
    "no arrow row": ({"kind": "arrow"}, pyarrow.array([], STRINGS), "are empty, or have no rows"),
    "null in parquet": ({"kind": "parquet"}, pyarrow.array([None, None], STRINGS), "2 no text in the field"),
    "a column of nulls": ({"kind": "parquet"}, pyarrow.nulls(3), "3 no text in the field"),
    "null in arrow": ({"kind": "arrow"}, pyarrow.nulls(3), "3 no text in the field"),
    "empty strings in parquet": ({"kind": "parquet"}, pyarrow.array(["", " "]), "2 empty"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_source_without_documents_is_a_mistake_with_its_reason(tmp_path: Path, name: str) -> None:
    source, data, reason = NOTHING[name]
    path = tmp_path / "a"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        table(source["kind"], data, path)
    with pytest.raises(UserError, match=rf"{path}.*{reason}"):
        corpus(path, source)
    # The same where another source has text: it was named to be read.
    (tmp_path / "sound.txt").write_text("sound")
    sources = [
        SourceConfig(paths=[f"{tmp_path}/sound.txt"]),
        SourceConfig.model_validate({"paths": [str(path)], **source}),
    ]
    with pytest.raises(UserError, match=rf"data\.sources\[1\].*{path}.*{reason}"):
        Corpus(sources)


def test_too_long_and_cleaned_away(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    assert "1 too long" in refusal(path, {}, max_document_bytes=99)
    (tmp_path / "b.jsonl").write_text("\n".join(LINES))
    assert "60 too long" in refusal(tmp_path / "b.jsonl", {"kind": "jsonl"}, max_document_bytes=5)
    with open(tmp_path / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], ["x" * 200_000]])
    assert "raise data.max_document_bytes" in refusal(tmp_path / "c.csv", {"kind": "csv"}, max_document_bytes=1000)
    says = refusal(path, {}, cleaning=[LengthStep(step="length", min=1000)])
    assert "1 length: too short" in says
    assert "data.cleaning" in says


def test_looking_counts_nothing_and_a_late_document_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("bad\n" * 5000 + LINES[0])
    found = corpus(path, {"kind": "jsonl"}, on_bad_record="skip")
    assert (dict(found.dropped), found.bad_count, found.records_read, found.bad) == ({}, 0, 0, [])
    assert [document.text for document in found.documents()] == ["document 0"]
    assert found.dropped == {"not JSON": 5000}
    # The policy is kept for reading.
    with pytest.raises(UserError, match=rf"{path}:1: not JSON"):
        list(corpus(path, {"kind": "jsonl"}, on_bad_record="fail").documents())


def write_config(folder: Path, *sources: dict[str, Any], **data: Any) -> Path:
    path = folder / "config.yaml"
    settings = {
        "run": {"directory": str(folder / "run")},
        "data": {"sources": list(sources), "tokenizer": {"kind": "bytes"}, "lanes": 2, **data},
        "model": {"max_positions": 2048},
        "train": {"steps": 2, "global_batch": 4, "micro_batch": 4},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)], catch_exceptions=False)


def warnings(done: Result) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("warning")]


@pytest.mark.parametrize("command", ["prepare", "stats", "tokenizer"])
def test_every_command_ends_with_2(tmp_path: Path, command: str) -> None:
    (tmp_path / "array.json").write_text(ARRAYS["one line"])
    (tmp_path / "lists.jsonl").write_text('{"text": ["a", "b"]}\n' * 4)
    (tmp_path / "sound.jsonl").write_text("\n".join(LINES))
    out = [tmp_path / "out", "--processes", 1] if command == "prepare" else []
    for names in (["array.json"], ["lists.jsonl"], ["sound.jsonl", "lists.jsonl"]):
        sources = [{"kind": "jsonl", "paths": [f"{tmp_path}/{name}"]} for name in names]
        done = run(command, write_config(tmp_path, *sources), *out)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert names[-1] in done.stderr
        assert not (tmp_path / "out").exists()


def test_prepare_names_a_source_of_which_looking_found_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is read in vain than at the start, all of it is known in the end."""
    monkeypatch.setattr("data_pipeline.sources.corpus.PROBED_BLOCKS", 2)
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": None, "more": "x" * 999}) + "\n") * 400)
    (tmp_path / "b.jsonl").write_text("\n".join(LINES))
    sources = [{"kind": "jsonl", "paths": [f"{tmp_path}/{name}.jsonl"]} for name in "ba"]
    done = run("prepare", write_config(tmp_path, *sources), tmp_path / "out", "--processes", 1)
    assert done.exit_code == 2
    assert "data.sources[1] holds no text" in done.stderr
    assert not (tmp_path / "out" / "train.idx").exists()


def test_prepare_warns_of_bad_records_and_of_files_that_gave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([*LINES, "not JSON", '{"text": 5}']))
    (tmp_path / "b.jsonl").write_text('{"text": ["a"]}\n' * 3)
    (tmp_path / "c.jsonl").write_text("\n".join(LINES))
    source = {"kind": "jsonl", "paths": [f"{tmp_path}/[abc].jsonl"]}
    out = tmp_path / "out"
    for said in ("is finished: ", "is finished already: "):
        done = run("prepare", write_config(tmp_path, source), out, "--processes", 1)
        assert (done.exit_code, said in done.stdout) == (0, True)
        assert warnings(done) == [
            "warning: 5 bad records among 125 (4.0%; data.bad_record_warning is 1.0%): 4 no text in the field,"
            f" 1 not JSON ({tmp_path}/b.jsonl: 3 no text in the field; {tmp_path}/a.jsonl: 1 no text in the field,"
            f" 1 not JSON); they are listed in {out}/quarantine.jsonl",
            f"warning: no record of {tmp_path}/b.jsonl was kept: 3 no text in the field",
        ]
    assert IndexedDataset(out / "train").document_count == 120
    quiet = run("prepare", write_config(tmp_path, source, bad_record_warning=0.05), tmp_path / "more", "--processes", 1)
    assert [line[:19] for line in warnings(quiet)] == ["warning: no record "]


def damaged(kind: str) -> tuple[str, bytes]:
    """The suffix and contents of a compressed file of which a part is lost."""
    import zstandard

    text = "".join(f"{json.dumps({'text': random.Random(i).randbytes(40).hex()})}\n" for i in range(3000)).encode()
    whole = gzip.compress(text)
    return {
        "cut": (".gz", whole[:2000]),
        "cut at a member": (".gz", whole + gzip.compress(text)[:2000]),
        "cut in the sum": (".gz", whole[:-3]),
        "damaged second member": (".gz", whole + whole[:50_000] + bytes(99) + whole[50_099:]),
        "something behind": (".gz", whole + b"trailing garbage"),
        "zst cut": (".zst", zstandard.compress(text)[:-2000]),
        "zst, second frame cut": (".zst", zstandard.compress(text) + zstandard.compress(text)[:20]),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "cut",
        "cut at a member",
        "cut in the sum",
        "damaged second member",
        "something behind",
        "zst cut",
        "zst, second frame cut",
    ],
)
def test_a_damaged_file_beside_sound_ones_is_always_named(tmp_path: Path, kind: str) -> None:
    suffix, data = damaged(kind)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
    (tmp_path / "b.jsonl").write_text("\n".join(LINES * 20))
    source = {"kind": "jsonl", "paths": [f"{tmp_path}/*.jsonl*"]}
    done = run("prepare", write_config(tmp_path, source, bad_record_warning=1.0), tmp_path / "out", "--processes", 1)
    assert done.exit_code == 0
    [warning] = warnings(done)
    assert warning.startswith(f"warning: {tmp_path}/a.jsonl{suffix} is ")
    assert "lost" in warning
    shown = run("stats", tmp_path / "config.yaml", "--json", "--bytes", 0)
    assert warnings(shown) == [warning]
    strict = run("prepare", write_config(tmp_path, source, on_bad_record="fail"), tmp_path / "strict", "--processes", 1)
    assert (strict.exit_code, f"a.jsonl{suffix}" in strict.stderr) == (2, True)


def test_the_share_that_a_zstandard_file_lost_is_told(tmp_path: Path) -> None:
    import zstandard

    text = b"".join(b'{"text": "%d"}\n' % i for i in range(200_000))
    whole = zstandard.ZstdCompressor(write_content_size=True).compress(text)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    found = corpus(tmp_path / "a.jsonl.zst", {"kind": "jsonl"})
    kept = sum(len(document.text) + 13 for document in found.documents())
    [warning] = found.take_counts().warnings(1.0)
    [share] = [int(word.strip("(").rstrip("%")) for word in warning.split() if word.endswith("%")]
    assert abs(share / 100 - (1 - kept / len(text))) < 0.01


@pytest.mark.parametrize(
    "row", ['"never closed\n' + "more\n" * 40_000, '"long\n' + "x" * 200_000 + '",1\n', '"' + "x" * 200_000]
)
def test_a_damaged_table_is_named_whatever_its_last_row_is(tmp_path: Path, row: str) -> None:
    """A row that is too long or has no end is another reason beside it."""
    whole = gzip.compress(f"text,n\nfirst,0\n{row}".encode(), 0)
    (tmp_path / "a.csv.gz").write_bytes(whole[:-3])
    found = corpus(tmp_path / "a.csv.gz", {"kind": "csv"}, max_document_bytes=100_000)
    assert [document.text for document in found.documents()] == ["first"]
    [warning] = found.take_counts().warnings(1.0)
    assert "a.csv.gz is cut short" in warning


@pytest.mark.parametrize("data", ['"text,n\n' + "a,1\n" * 200_000, "x" * 800_000])
def test_a_header_without_end_is_not_read_to_the_end(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    fetch = PlainBytes.fetch

    def counted(self: PlainBytes, offset: int, size: int) -> bytes:
        fetched.append(size)
        return fetch(self, offset, size)

    monkeypatch.setattr(PlainBytes, "fetch", counted)
    path = tmp_path / "a.csv"
    path.write_text(data)
    assert "it has no header row" in refusal(path, {"kind": "csv"}, max_document_bytes=100_000)
    assert max(fetched) < 300_000


def test_json_that_needs_repair_is_judged_as_it_is_read(tmp_path: Path) -> None:
    odd = [*LINES[:3], '{"text": "half \\ud83d", "n": 1e999}']
    path = tmp_path / "a.jsonl"
    for data in ("[" + ", ".join(odd) + "]", "[\n" + ",\n".join(odd) + "\n]"):
        path.write_text(data)
        assert "is one JSON array" in refusal(path, {"kind": "jsonl"})
    path.write_text("".join(f"{odd[3]},\n" for _ in range(9)))
    assert "comma behind" in refusal(path, {"kind": "jsonl"})
    path.write_text("\n".join(odd[3:] * 9))
    assert read(path, {"kind": "jsonl"}) == ["half \ufffd"] * 9
    assert "has no field 'body' but 'text', 'n'" in refusal(path, {"kind": "jsonl", "field": "body"})


def test_what_was_repaired_or_filled_is_not_why_nothing_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud83d"}\n' * 5)
    source = {"kind": "jsonl", "field": "{a}{b}", "defaults": {"b": "x"}}
    says = refusal(path, source, cleaning=[LengthStep(step="length", min=1000)])
    assert "5 absent field filled, 5 length: too short, 5 lone surrogates replaced" in says
    assert says.endswith("relax data.cleaning")


def test_prepared_tokens_without_any_are_no_source(tmp_path: Path) -> None:
    for name, documents in (("empty", []), ("full", [np.arange(200) % 250] * 5)):
        with IndexedWriter(tmp_path / name, np.dtype(np.uint16)) as writer:
            writer.add(documents)
    sources = [{"kind": "tokens", "paths": [f"{tmp_path}/{name}"]} for name in ("full", "empty")]
    with pytest.raises(UserError, match=rf"data\.sources\[1\] holds no text: {tmp_path}/empty has no token"):
        open_samples(config(*sources), BytesTokenizer(), CausalObjective(), seed=0, cache=None)


def test_sources_that_are_whole_stay_silent(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(LINES))
    source = {"kind": "jsonl", "paths": [f"{tmp_path}/a.jsonl"]}
    done = run("prepare", write_config(tmp_path, source), tmp_path / "out", "--processes", 1)
    assert (done.exit_code, warnings(done)) == (0, [])
    tokens = list(itertools.chain.from_iterable(IndexedDataset(tmp_path / "out/train").document(i) for i in range(3)))
    expected = [
        token for row in ROWS[:3] for token in [*BytesTokenizer().encode(row["text"]), BytesTokenizer().special["eos"]]
    ]
    assert tokens == expected


def test_columns_of_different_numbers(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("Anna x B-PER\nsings O\n\n")
    source = {"kind": "conll", "field": "tokens", "fields": {"tokens": "tokens", "tags": "tags"}}
    with pytest.raises(UserError) as caught:
        list(corpus(tmp_path / "tags.txt", source).documents())
    said = str(caught.value)
    assert "the first at" in said
    assert "the line of 'sings' has 2 columns, but that of 'Anna' has 3); correct the file" in said
