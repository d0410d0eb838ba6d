"""Files that are something else than their source says: told by their first bytes, before anything is read of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
import zstandard

from data_pipeline.base.encodings import guess
from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.finite.format import IndexedDataset
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer.store import open_tokenizer
from llmscale.hugging_face.files import read_json
from llmscale.hugging_face.tensors import TensorFolder
from tests.data_pipeline.source_writers import WRITERS

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 9\n"
ANNEX = b"/annex/objects/SHA256E-s9--" + b"ab" * 32 + b".txt\n"
PAGE = b"\n<!-- x -->\n<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
KINDS: dict[str, dict[str, Any]] = {
    "a.txt": {"document": "line"},
    "b.txt": {},
    "c.txt": {"delimiter": "<|>"},
    "a.jsonl": {"kind": "jsonl"},
    "a.jsonl.gz": {"kind": "jsonl"},
    "a.csv": {"kind": "csv"},
    "a.tsv.zst": {"kind": "tsv"},
    "a.parquet": {"kind": "parquet"},
    "a.arrow": {"kind": "arrow"},
}


def refusal(path: Path, data: bytes, source: dict[str, Any]) -> str:
    """What a source of one file is refused with; it must name the file, in one line."""
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        corpus(path, source)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corpus(path: Path, source: dict[str, Any]) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [str(path)], **source})])


def read(path: Path, source: dict[str, Any]) -> list[str]:
    return [document.text for document in corpus(path, source).documents()]


@pytest.mark.parametrize("name", KINDS)
def test_pointers_and_pages_are_no_documents_of_any_kind(tmp_path: Path, name: str) -> None:
    assert "git lfs pull" in refusal(tmp_path / name, LFS, KINDS[name])
    assert "git annex get" in refusal(tmp_path / name, ANNEX, KINDS[name])
    assert "web page" in refusal(tmp_path / name, PAGE, KINDS[name])


def test_a_link_into_an_annex_without_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(".git/annex/objects/aa/bb/SHA256E-s9--ab/SHA256E-s9--ab")
    with pytest.raises(UserError, match="git annex get"):
        corpus(tmp_path / "a.txt", {})


@pytest.mark.parametrize("before", ["\ufeff", "\n", "\ufeff\r\n \n"])
def test_marks_and_newlines_hide_no_pointer(tmp_path: Path, before: str) -> None:
    for name in ("a.txt", "b.txt", "a.jsonl", "a.csv"):
        assert "git lfs pull" in refusal(tmp_path / name, before.encode() + LFS, KINDS[name])
    data = b'<?xml version="1.0"?><Error xmlns="x">\n<Code>NoSuchKey</Code></Error>'
    assert "error message of a storage" in refusal(tmp_path / "a.txt", data, {})


@pytest.mark.parametrize(("encoding", "text"), [("iso2022_jp", "今日はいい天気 a"), ("iso2022_kr", "안녕하세요 a")])
def test_encodings_that_switch_states_are_told_by_their_escapes(tmp_path: Path, encoding: str, text: str) -> None:
    data = f"{text}\nplain\n".encode(encoding)
    message = refusal(tmp_path / "a.txt", data, KINDS["a.txt"])
    named = message.partition("encoding to ")[2].partition(",")[0]
    assert read(tmp_path / "a.txt", {**KINDS["a.txt"], "encoding": named}) == [text, "plain"]
    # Escapes that colour a terminal are text.
    (tmp_path / "a.txt").write_bytes(b"\x1b[31mred\x1b[0m $B\n")
    assert read(tmp_path / "a.txt", KINDS["a.txt"]) == ["\x1b[31mred\x1b[0m $B"]


def test_what_only_mentions_them_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = [
        f"about {LFS.decode()}",
        f"{ANNEX.decode()} is a path",
        "<htmlx> is no tag",
        "BZh is short",
        "<!-- a -->\n" * 400 + "text",
    ]
    for text in texts:
        path.write_text(text)
        assert read(path, {}) == [text]
    # Web pages are text where they are called so, where a step cleans them, or where the user says text.
    (tmp_path / "a.html").write_bytes(PAGE)
    assert read(tmp_path / "a.html", {}) == [PAGE.decode()]
    path.write_bytes(PAGE)
    assert read(path, {"encoding": "utf-8"}) == [PAGE.decode()]


def _zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", data)
    return file.getvalue()


def _parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), file)
    return file.getvalue()


def _arrow() -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"text": ["a"]})
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


TEXT = b'{"text": "good"}\n' * 40
FORMATS = {
    "gzip": gzip.compress(TEXT),
    "Zstandard": zstandard.compress(TEXT),
    "zip": _zip(TEXT),
    "bzip2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
    "Parquet": _parquet(),
    "Arrow": _arrow(),
    "PDF": b"%PDF-1.7\n%text\n",
    "binary": bytes(range(256)) * 8 + bytes(400),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_under_the_name_of_a_text(tmp_path: Path, name: str) -> None:
    for file in ("a.txt", "b.txt", "a.jsonl", "a.csv"):
        assert name in refusal(tmp_path / file, FORMATS[name], KINDS[file])
    for file, own in (("a.parquet", "Parquet"), ("a.arrow", "Arrow")):
        if name not in (own, "binary", "PDF"):
            assert name in refusal(tmp_path / file, FORMATS[name], KINDS[file])


def test_a_name_that_promises_compression_is_kept_to(tmp_path: Path) -> None:
    assert ".gz" in refusal(tmp_path / "a.jsonl.gz", TEXT, KINDS["a.jsonl"])
    assert "gzip" in refusal(tmp_path / "a.jsonl.zst", FORMATS["gzip"], KINDS["a.jsonl"])
    # What is within counts as well.
    assert "gzip" in refusal(tmp_path / "a.jsonl.gz", gzip.compress(FORMATS["gzip"]), KINDS["a.jsonl"])
    assert "web page" in refusal(tmp_path / "a.jsonl.zst", zstandard.compress(PAGE), KINDS["a.jsonl"])
    assert "gb18030" in refusal(tmp_path / "a.txt.gz", gzip.compress("今天\n".encode("gbk")), KINDS["a.txt"])


def test_pointers_in_place_of_tokens_tokenizers_and_weights(tmp_path: Path) -> None:
    def refused(what: Any, *arguments: Any) -> None:
        with pytest.raises(UserError, match="git lfs pull"):
            what(*arguments)

    with IndexedWriter(tmp_path / "a", np.dtype(np.uint16)) as writer:
        writer.add([np.array([1, 2])])
    for name in ("a.bin", "a.idx"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(LFS)
        refused(IndexedDataset, tmp_path / "a")
        (tmp_path / name).write_bytes(kept)
    assert IndexedDataset(tmp_path / "a").document(0).tolist() == [1, 2]
    for kind, name in (("huggingface", "tokenizer.json"), ("sentencepiece", "x.model"), ("wordpiece", "vocab.txt")):
        (tmp_path / name).write_bytes(LFS)
        refused(open_tokenizer, TokenizerConfig(kind=kind, path=str(tmp_path / name)))  # type: ignore[arg-type]
    (tmp_path / "config.json").write_bytes(LFS)
    refused(read_json, tmp_path / "config.json", "fix")
    (tmp_path / "model.safetensors").write_bytes(LFS)
    refused(TensorFolder, tmp_path)
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "model.safetensors")
    assert list(TensorFolder(tmp_path).names) == ["x"]


LANGUAGES = {
    "zh": ("今天天气很好，我们一起去公园散步吧。\n机器学习需要大量数据\n", ["gbk", "gb2312", "gb18030"]),
    "zh, two characters": ("今天\n", ["gbk"]),
    "tw": ("今天天氣很好，我們一起去公園散步吧。\n機器學習需要大量資料\n", ["big5", "cp950"]),
    "ja": ("今日はいい天気です。\n学校へ行きました。\n日本語\n", ["shift_jis", "cp932", "euc_jp"]),
    "ko": ("안녕하세요\n오늘은 날씨가 좋습니다.\n한국어 데이터\n", ["euc_kr", "cp949"]),
    "fr": ("Les élèves français étaient déjà là.\nOù ça?\n", ["latin-1", "cp1252"]),
    "de": ("Die Männer fahren über die Straße.\nGrüße aus Köln\n", ["latin-1", "cp1252"]),
    "en": ("“Smart quotes” – she said it’s “fine”.\nIt’s ‘ok’ — really…\n", ["cp1252"]),
    "pl": ("Zażółć gęślą jaźń. Dziękuję, proszę się uśmiechnąć.\n", ["cp1250"]),
    "ru": ("Привет, мир! Сегодня хорошая погода.\nМы пошли в школу.\n", ["cp1251", "koi8_r", "cp866"]),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_likely_encoding_is_named_and_then_read(tmp_path: Path, name: str) -> None:
    text, encodings = LANGUAGES[name]
    lines = text.splitlines()
    for encoding in encodings:
        found = guess(text.encode(encoding))
        assert found is not None
        assert text.encode(encoding).decode(found.encoding) == text
        for file, source, data in (
            ("a.txt", KINDS["a.txt"], text),
            ("b.txt", KINDS["b.txt"], text),
            ("a.jsonl", KINDS["a.jsonl"], "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in lines)),
            ("a.tsv", {"kind": "tsv"}, "id\ttext\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(lines))),
        ):
            message = refusal(tmp_path / file, data.encode(encoding), source)
            assert f"encoding to {found.encoding}" in message
            expected = [text] if file == "b.txt" else lines
            assert read(tmp_path / file, {**source, "encoding": found.encoding}) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_told_by_mark_or_zeros(tmp_path: Path, encoding: str) -> None:
    data = "hello\nmy world\n".encode(encoding)
    message = refusal(tmp_path / "a.txt", data, KINDS["a.txt"])
    [named] = [word.rstrip(",") for word in message.split() if word.startswith("utf-")][:1]
    assert data.decode(named) == "hello\nmy world\n"
    assert read(tmp_path / "a.txt", {**KINDS["a.txt"], "encoding": named}) == ["hello", "my world"]


def test_marks_of_every_utf_are_no_text(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        for name, source in KINDS.items():
            if source.get("kind", "text") == "text" and "document" in source:
                (tmp_path / name).write_bytes("世界\nb\n".encode(encoding))
                assert read(tmp_path / name, {**source, "encoding": encoding}) == ["世界", "b"]
        (tmp_path / "a.csv").write_bytes("text,n\n世界,1\n".encode(encoding))
        assert read(tmp_path / "a.csv", {"kind": "csv", "encoding": encoding}) == ["世界"]
        assert read(tmp_path / "a.csv", {"kind": "csv", "encoding": encoding, "field": "n"}) == ["1"]


def test_utf8_under_another_name_is_refused(tmp_path: Path) -> None:
    for encoding in ("gbk", "cp1252", "utf-16"):
        assert "is UTF-8" in refusal(tmp_path / "a.txt", "今天天气很好，我们".encode(), {"encoding": encoding})
    for encoding in ("utf-16", "utf-16-be", "utf-32"):
        assert "is UTF-8" in refusal(tmp_path / "a.txt", b"plain text\n" * 9, {"encoding": encoding})
    for encoding, other in (("utf-16-be", "utf-16-le"), ("utf-32-le", "utf-32-be"), ("utf-16-le", "utf-32-le")):
        data = "\ufeffplain text\n".encode(other)
        assert "byte order mark" in refusal(tmp_path / "a.txt", data, {"encoding": encoding})
        (tmp_path / "a.txt").write_bytes(data)
        assert read(tmp_path / "a.txt", {"encoding": other}) == ["plain text\n"]


def test_stray_bytes_are_mended_as_before(tmp_path: Path) -> None:
    """A few invalid bytes among much text are no other encoding, wherever they stand."""
    draw = random.Random(0)
    sound = "".join(f"line {i} déjà vu 你好\n" for i in range(3000)).encode()
    for _ in range(20):
        data = bytearray(sound)
        for _ in range(draw.choice([1, 5, 40])):
            data[draw.randrange(len(data))] = 0xFF
        (tmp_path / "a.txt").write_bytes(bytes(data))
        assert read(tmp_path / "a.txt", {}) == [bytes(data).decode(errors="replace")]
    english = b"plain text\n" * 500 + b"caf\xe9\n" + b"plain text\n" * 500
    (tmp_path / "a.txt").write_bytes(english)
    assert read(tmp_path / "a.txt", {}) == [english.decode(errors="replace")]
    # Whoever says UTF-8 gets it in any case.
    (tmp_path / "a.txt").write_bytes("今天\n".encode("gbk"))
    assert read(tmp_path / "a.txt", {"encoding": "utf-8"}) == ["今天\n".encode("gbk").decode(errors="replace")]


def test_an_encoding_is_told_by_the_end_of_a_file_too(tmp_path: Path) -> None:
    data = b"an ASCII header\n" * 5000 + "今天天气很好\n".encode("gbk") * 30_000
    assert "gb18030" in refusal(tmp_path / "a.txt", data, KINDS["a.txt"])


@pytest.mark.parametrize("name", ["files", "lines", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "tsv", "parquet", "arrow"])
def test_sound_files_are_what_they_were(tmp_path: Path, name: str) -> None:
    documents = [f"{i} 你好，世界 déjà vu" for i in range(130)]
    source = WRITERS[name](tmp_path, documents)
    assert sorted(document.text for document in Corpus([SourceConfig.model_validate(source)]).documents()) == sorted(
        documents
    )
