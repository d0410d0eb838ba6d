"""Files that cannot be read at all, or no longer: always a mistake that names the file, whatever the policy."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.base.errors import UserError
from tests.data_pipeline.corpora import texts
from tests.data_pipeline.sources.test_bad_records import GOOD, JSONL, corpus, read, write_table


def _shorten_later(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_table_file_cut_short_is_named(tmp_path: Path, kind: str, keep: float) -> None:
    source = write_table(tmp_path, kind, texts(60))
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}/a: .*; repair it or exclude it") as caught:
        read(corpus(tmp_path, source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(("text\n" if name == "a.csv" else "") + f"{GOOD}\n".replace(",", ";") * 9000)
    source = {"a.txt": {"document": "line"}, "a.jsonl": JSONL, "a.csv": {"kind": "csv", "quote": ""}}[name]
    if name == "a.jsonl":
        (tmp_path / name).write_text(f"{GOOD}\n" * 9000)
    found = corpus(tmp_path, source)
    documents = found.documents()
    next(documents)
    _shorten_later(tmp_path / name)
    with pytest.raises(UserError, match=rf"cannot read {tmp_path}/{name}: it has become shorter"):
        list(documents)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    found = corpus(tmp_path, {})
    (tmp_path / "a.txt").unlink()
    with pytest.raises(
        UserError, match=rf"cannot read {tmp_path}/a.txt: No such file or directory; repair it or exclude it"
    ):
        read(found)


def test_a_file_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("text")
        (folder / "a.txt").chmod(0)
        said = _as_somebody_else(lambda: corpus(folder, {}))
    assert re.search(r"^cannot read .*a.txt: Permission denied; make it readable or exclude it$", said)


def _as_somebody_else(action: Callable[[], Any]) -> str:
    """The UserError of an action in a process that is not root's, who may read everything."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            action()
        except UserError as error:
            os.write(send, str(error).encode())
        finally:
            os._exit(0)
    os.close(send)
    os.waitpid(child, 0)
    with open(receive) as pipe:
        return pipe.read()


def test_a_folder_among_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "a.jsonl" / "part-0").write_text(GOOD)
    (tmp_path / "b.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match=r"paths: .*a\.jsonl is a folder; write .*/\*\*/\* for its files"):
        corpus(tmp_path, {**JSONL, "paths": [f"{tmp_path}/*.jsonl"]})
    assert read(corpus(tmp_path, {**JSONL, "paths": [f"{tmp_path}/*"]})) == ["good"]


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "/dev/null"])
def test_what_is_no_regular_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, through_link: bool
) -> None:
    path = tmp_path / "a.txt"
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            # The path of a socket may have 107 bytes only.
            monkeypatch.chdir(tmp_path)
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind("a.txt")
        else:
            path = Path(kind)
        if through_link:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        with pytest.raises(
            UserError, match=rf"\.paths: {path} is no regular file but a pipe, a device or a socket; name a file"
        ):
            corpus(tmp_path, {"paths": [str(path)]})
        # Nor does a pattern take them.
        (tmp_path / "b.txt").write_text("text")
        assert read(corpus(tmp_path, {"paths": [f"{tmp_path}/*"]})) == ["text"]


@pytest.mark.parametrize("target", ["gone.txt", "a.txt"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.txt").symlink_to(target)
    (tmp_path / "b.txt").write_text("text")
    said = rf"cannot read {tmp_path}/a\.txt: .* \(it is a link to {target}\); make it readable or exclude it"
    for pattern in ("a.txt", "*.txt", "**/*"):
        with pytest.raises(UserError, match=said):
            corpus(tmp_path, {"paths": [f"{tmp_path}/{pattern}"]})
    assert read(corpus(tmp_path, {"paths": [f"{tmp_path}/*"], "exclude": ["a.*"]})) == ["text"]
    assert read(corpus(tmp_path, {"paths": [f"{tmp_path}/b*"]})) == ["text"]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").symlink_to("b.txt")
    assert read(corpus(tmp_path, {"paths": [f"{tmp_path}/*"]})) == ["text"]


WHOLE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "a.csv": (b'"te', {"kind": "csv"}, r"cannot read .*a.csv: it has no header row: a quote is not closed"),
    "b.arrow": (b"no arrow at all", {"kind": "arrow"}, r"cannot read .*b.arrow: it is no Arrow file"),
    "c.arrow": (b"ARROW1\0\0" + bytes(40), {"kind": "arrow"}, r"cannot read .*c.arrow: the Arrow file is cut short"),
    "d.bz2": (b"BZh", {}, r"d.bz2 is compressed in a way that is not read; use .gz or .zst"),
    "e.parquet": (b"PAR1", {"kind": "parquet"}, r"cannot read .*e.parquet: "),
}


@pytest.mark.parametrize("name", WHOLE)
def test_files_of_another_format_are_named(tmp_path: Path, name: str) -> None:
    data, source, message = WHOLE[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read(corpus(tmp_path, source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_of_another_type_is_refused(tmp_path: Path, kind: str) -> None:
    source = write_table(tmp_path, kind, [1, 2])
    with pytest.raises(UserError, match=r"field: 'text' of .*a holds int64, not text; set .* to a text column"):
        corpus(tmp_path, source)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet", "arrow"])
@pytest.mark.parametrize("field", ["text", "{id} {text}"])
def test_a_field_that_is_there_twice_is_refused(tmp_path: Path, kind: str, field: str) -> None:
    path = tmp_path / f"a.{kind}"
    table = pyarrow.Table.from_arrays([pyarrow.array([cell]) for cell in "abcde"], ["text", "x", "id", "text", "x"])
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        rows = "text,x,id,text,x\na,b,c,d,e\n".replace(",", "\t" if kind == "tsv" else ",").encode()
        path.write_bytes(gzip.compress(rows) if kind == "csv.gz" else rows)
    source = {"kind": kind.partition(".")[0], "paths": [str(path)]}
    with pytest.raises(UserError, match=rf"\.field: {path} has 2 fields 'text'; rename all but one of them, or set "):
        corpus(tmp_path, {**source, "field": field})
    # That others are there twice does no harm.
    assert read(corpus(tmp_path, {**source, "field": "id"})) == ["c"]


def test_an_object_where_a_string_was_stops_a_streamed_data_set(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(50)] + [{"text": {"a": "b"}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="data set 'json'"):
        read(corpus(tmp_path, {"kind": "datasets", "name": "json"}))


def test_a_malformed_line_stops_a_streamed_data_set(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {i} " + "x" * 1000}) for i in range(30_000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text": "to', *rows[:10]]))
    found = corpus(tmp_path, {"kind": "datasets", "name": "json"})
    for _ in range(2):
        with pytest.raises(UserError, match="cannot read data set 'json'"):
            read(found)
