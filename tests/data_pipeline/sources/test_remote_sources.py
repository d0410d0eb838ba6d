"""Sources behind fsspec URLs: listed, fingerprinted and read like local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.sources.corpus import Corpus
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts, write_jsonl
from tests.data_pipeline.sources.test_source_kinds import CASES, pairs, read_span


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def upload(memory: Any, folder: Path, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())


def corpus(source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate(source)], **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_every_kind_is_read_remotely(tmp_path: Path, memory: Any, name: str, protocol: str) -> None:
    case = CASES[name](tmp_path)
    upload(memory, tmp_path, "/bucket")
    url = "memory://bucket/*" if protocol == "memory" else f"file://{tmp_path}/*"
    found = corpus({**case.source, "paths": [url]}, span_bytes=3000)
    documents = [document for span in found.spans for document in read_span(found, span)]
    assert pairs(documents) == case.pairs
    middle = documents[len(documents) // 2]
    span = next(span for span in reversed(found.spans) if span.start <= middle.position)
    assert found.read(span, middle.position)[0][0] == middle


def test_names_order_and_exclusion_are_those_of_local_files(tmp_path: Path, memory: Any) -> None:
    for name in ("b/2.txt", "a/10.txt", "a/9.txt", "a/skip.min.txt", "c/deep/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    upload(memory, tmp_path, "/bucket")
    local, remote = (
        corpus({"paths": [f"{place}/**/*.txt"], "exclude": ["*.min.txt"]}) for place in (tmp_path, "memory://bucket")
    )
    assert [file.name for file in remote.files] == [file.name for file in local.files]
    assert [document.text for document in remote.documents()] == [document.text for document in local.documents()]
    assert [document.id for document in remote.documents()] == [document.id for document in local.documents()]


def test_a_run_on_remote_files_resumes_and_refuses_changed_ones(tmp_path: Path, memory: Any) -> None:
    write_jsonl(tmp_path / "files", texts(90))
    upload(memory, tmp_path / "files", "/bucket")
    data = config({"kind": "jsonl", "paths": ["memory://bucket/*.jsonl"]}, lanes=2, workers=1)
    directory = bytes_tokenizer(tmp_path)
    with TrainLoader(data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1) as loader:
        loader.take(4)
        cursor = merge_cursors([loader.cursor()])
        expected = loader.take(4)[0].inputs
    resume = {"seed": 0, "dp_rank": 0, "dp_size": 1, "first_sample": 4, "cursor": cursor}
    with TrainLoader(data, load_tokenizer(directory), **resume) as loader:
        assert loader.take(4)[0].inputs.equal(expected)
    # The same size, head and tail: only the store knows.
    memory.pipe_file("/bucket/1.jsonl", memory.cat_file("/bucket/1.jsonl"))
    with pytest.raises(UserError, match=r"memory:///bucket/1.jsonl changed since the run was saved"):
        TrainLoader(data, load_tokenizer(directory), **resume)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["memory://bucket/*.nothing"], r"paths: no file matches memory://bucket/\*\.nothing"),
        (["memory://bucket/nothing.txt"], r"no file matches memory://bucket/nothing.txt"),
        (["memory://bucket/folder"], r"memory://bucket/folder is a folder; write memory://bucket/folder/\*\*/\*"),
        (["nosuchprotocol://bucket/a"], r"cannot list nosuchprotocol://bucket/a: Protocol not known"),
    ],
)
def test_bad_urls_are_named(memory: Any, paths: list[str], message: str) -> None:
    memory.pipe_file("/bucket/folder/a.txt", b"text")
    with pytest.raises(UserError, match=message):
        corpus({"paths": paths})


def test_a_remote_file_that_vanishes_is_named(memory: Any) -> None:
    memory.pipe_file("/bucket/a.txt", b"line\n" * 1000)
    found = corpus({"paths": ["memory://bucket/a.txt"], "document": "line"})
    memory.rm("/bucket/a.txt")
    with pytest.raises(UserError, match=r"cannot read memory:///bucket/a.txt: No such file or directory; repair"):
        list(found.documents())
