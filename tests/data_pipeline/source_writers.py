"""Small sources of every kind, all holding the same documents, with or without targets."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from data_pipeline.document import Document
from data_pipeline.finite.cache import materialise
from data_pipeline.objectives.packing import Stored
from data_pipeline.tokenizer import BytesTokenizer

FILES = 120
"""Of kinds whose files are not split: more than the lanes of any test."""


def target_of(text: str) -> str:
    return text[::-1][:20]


def write(kind: str, folder: Path, documents: list[str], pairs: bool = False) -> dict[str, Any]:
    """Write documents as a source of some kind; its entry in `data.sources`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = WRITERS[kind](folder, documents)
    return {**source, "target_field": "summary"} if pairs and kind != "tokens" else source


def _rows(documents: list[str]) -> list[dict[str, Any]]:
    return [{"n": n, "text": text, "summary": target_of(text)} for n, text in enumerate(documents)]


def _parts(documents: list[str], files: int = FILES) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rows = _rows(documents)
    for i in range(files):
        yield f"{i:03d}", rows[i::files]


def _files(folder: Path, documents: list[str]) -> dict[str, Any]:
    for i, text in enumerate(documents):
        path = folder / f"part{i % 3}" / f"{i:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {"kind": "text", "paths": [f"{folder}/**/*.txt"]}


def _lines(folder: Path, documents: list[str]) -> dict[str, Any]:
    (folder / "a.txt").write_text("".join(text.replace("\n", " ") + "\n" for text in documents), encoding="utf-8")
    return {"kind": "text", "document": "line", "paths": [f"{folder}/a.txt"]}


def _separated(folder: Path, documents: list[str]) -> dict[str, Any]:
    (folder / "a.txt").write_text("<|endoftext|>".join(documents), encoding="utf-8")
    return {"kind": "text", "delimiter": "<|endoftext|>", "paths": [f"{folder}/a.txt"]}


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0) + "\n" for row in rows).encode()


def _jsonl(folder: Path, documents: list[str]) -> dict[str, Any]:
    for name, rows in _parts(documents, 2):
        (folder / f"{name}.jsonl").write_bytes(_json_lines(rows))
    return {"kind": "jsonl", "paths": [f"{folder}/*.jsonl"]}


def _jsonl_gz(folder: Path, documents: list[str]) -> dict[str, Any]:
    for name, rows in _parts(documents):
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(_json_lines(rows)))
    return {"kind": "jsonl", "paths": [f"{folder}/*.jsonl.gz"]}


def _jsonl_zst(folder: Path, documents: list[str]) -> dict[str, Any]:
    for name, rows in _parts(documents):
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.compress(_json_lines(rows)))
    return {"kind": "jsonl", "paths": [f"{folder}/*.jsonl.zst"]}


def _table(delimiter: str, kind: str) -> Callable[[Path, list[str]], dict[str, Any]]:
    def make(folder: Path, documents: list[str]) -> dict[str, Any]:
        for name, rows in _parts(documents):
            text = io.StringIO()
            writer = csv.DictWriter(text, ["n", "text", "summary"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
            (folder / f"{name}.{kind}").write_text(text.getvalue(), encoding="utf-8", newline="")
        return {"kind": kind, "quote": '"', "paths": [f"{folder}/*.{kind}"]}

    return make


def _parquet(folder: Path, documents: list[str]) -> dict[str, Any]:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_rows(documents)), folder / "a.parquet", row_group_size=4)
    return {"kind": "parquet", "paths": [f"{folder}/a.parquet"]}


def _arrow(folder: Path, documents: list[str]) -> dict[str, Any]:
    table = pyarrow.Table.from_pylist(_rows(documents))
    with pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return {"kind": "arrow", "paths": [f"{folder}/a.arrow"]}


def _datasets(folder: Path, documents: list[str]) -> dict[str, Any]:
    for name, rows in _parts(documents):
        (folder / f"{name}.jsonl").write_bytes(_json_lines(rows))
    return {"kind": "datasets", "name": "json", "paths": [f"{folder}/*.jsonl"]}


def _tokens(folder: Path, documents: list[str]) -> dict[str, Any]:
    """Pairs too: each document followed by its target."""
    for name, rows in _parts(documents, 3):
        made = [Document(row["n"], 0, row["n"], row["text"], row["summary"]) for row in rows]
        materialise(made, BytesTokenizer(), folder / name, digest=name, stored=Stored(target=True))
    return {"kind": "tokens", "paths": [f"{folder}/*"]}


WRITERS: dict[str, Callable[[Path, list[str]], dict[str, Any]]] = {
    "files": _files,
    "lines": _lines,
    "separated": _separated,
    "jsonl": _jsonl,
    "jsonl.gz": _jsonl_gz,
    "jsonl.zst": _jsonl_zst,
    "csv": _table(",", "csv"),
    "tsv": _table("\t", "tsv"),
    "parquet": _parquet,
    "arrow": _arrow,
    "datasets": _datasets,
    "tokens": _tokens,
}
WITHOUT_TARGETS = ("files", "lines", "separated")
