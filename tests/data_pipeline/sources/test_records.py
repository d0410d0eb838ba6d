"""Whole records of files: what each reader gives is what was written, in order, each once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.records import read_records

RECORDS = [
    {"id": i, "text": f"t{i} " + "ü" * (i % 300), "choices": {"text": ["a", f"b{i}"], "label": [1, 2]}, "none": None}
    for i in range(3000)
]


def read(
    kind: str, path: Path, *, needed: tuple[str, ...] = ("id", "text"), wanted: tuple[str, ...] = ("choices",)
) -> Any:
    source = SourceConfig.model_validate({"kind": kind, "paths": [str(path)]})
    records = list(read_records(source, "task.yaml", needed, wanted))
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    assert {record.path for record in records} <= {str(path)}
    return [record.fields for record in records]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_json_lines_over_many_blocks(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{ending}"
    data = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[ending]
    path.write_bytes(pack(data))
    assert read("jsonl", path) == RECORDS


def test_tables_over_many_row_groups_and_batches(tmp_path: Path) -> None:
    """Of tables, the columns that are asked for."""
    table = pyarrow.Table.from_pylist(RECORDS)
    expected = [{name: record[name] for name in ("id", "text", "choices")} for record in RECORDS]
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet", row_group_size=700)
    assert read("parquet", tmp_path / "data.parquet") == expected
    for new in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
        with new(str(tmp_path / "data.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=650)
        assert read("arrow", tmp_path / "data.arrow") == expected
    assert read("parquet", tmp_path / "data.parquet", wanted=("no", "none"))[0].keys() == {"id", "text", "none"}


def test_a_file_without_a_needed_field(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(RECORDS[:3])
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(UserError) as caught:
        read("parquet", tmp_path / "data.parquet", needed=("txt",))
    assert str(caught.value) == (
        f"task.yaml: {tmp_path}/data.parquet has no field 'txt' but 'id', 'text', 'choices', 'none'; did you mean"
        " 'text'?"
    )


def test_a_damaged_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1, "text": "x"}\n' * 50_000)[:-900])
    with pytest.raises(UserError, match=r"data\.jsonl\.gz"):
        read("jsonl", path)
