"""Text in other encodings: read as Python decodes the whole file, wherever spans fall and reading begins."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_pipeline.base.encodings import cuts_at_newlines, normal_name
from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.document import Document
from data_pipeline.loader import TrainLoader
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import load_tokenizer
from llmscale.config import identity, parse_config
from tests.data_pipeline.corpora import bytes_tokenizer, config

WORDS = {
    # The second bytes of some of these are a backslash, a bar, a brace or a quote of ASCII.
    "gb18030": "乗俓亅 今天天气 很好，𠀀 我们 乽",
    "gbk": "乗俓亅 今天天气 很好， 我们 乽",
    "big5": "功許蓋 今天 天氣，很好 育 愧",
    "cp932": "ソ表能予 ポ 十 今日は、いい天気",
    "euc_jp": "今日は、いい 天気 です",
    "cp949": "안녕 하세요 똠방각하 오늘",
    "johab": "안녕 하세요 오늘",
    "cp1252": "déjà vu “quotes” – naïve œuvre",
    "koi8_r": "Привет, мир сегодня",
    "utf-16": "今天 déjà 𠀀 ਊ Ċ",
    "utf-16-be": "今天 déjà 𠀀 ਊ Ċ",
    "utf-32-le": "今天 déjà 𠀀 Ċ",
    "iso2022_jp": "今日は、いい 天気 です",
    "hz": "今天 天气 很好",
}
"""Words by encoding; U+0A0A and U+010A are made of newline bytes in UTF-16."""
KINDS = ("lines", "delimiter", "jsonl", "csv", "tsv", "file")
DELIMITER = "\n%%\n"


def records(encoding: str) -> list[str]:
    words = WORDS[encoding].split(" ")
    return [f"{i} " + " ".join(itertools.islice(itertools.cycle(words), i % 7, i % 7 + i % 5 + 1)) for i in range(40)]


def write(path: Path, kind: str, texts: list[str], encoding: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of a source, and what Python's own readers make of the whole file."""
    if kind == "file":
        path.write_bytes("\n".join(texts).encode(encoding))
        return {}, [path.read_text(encoding)]
    if kind == "lines":
        path.write_bytes("\r\n".join(texts).encode(encoding))
        return {"document": "line"}, path.read_bytes().decode(encoding).split("\r\n")
    if kind == "delimiter":
        path.write_bytes(DELIMITER.join(texts).encode(encoding))
        return {"delimiter": DELIMITER}, path.read_bytes().decode(encoding).split(DELIMITER)
    if kind == "jsonl":
        path.write_bytes("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode(encoding))
        decoded = path.read_bytes().decode(encoding)
        return {"kind": "jsonl"}, [json.loads(line)["text"] for line in decoded.splitlines()]
    separator = "\t" if kind == "tsv" else ","
    rows = [["n", "text"], *([str(i), t + '\n"x"' * (kind == "csv" and i % 3 == 0)] for i, t in enumerate(texts))]
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
    path.write_bytes(file.getvalue().encode(encoding))
    source = {"kind": kind, **({"quote": ""} if kind == "tsv" else {})}
    decoded = path.read_bytes().decode(encoding)
    return source, [row["text"] for row in csv.DictReader(io.StringIO(decoded), delimiter=separator)]


def corpus(path: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [str(path)], **source})], **options)


def read_span(found: Corpus, number: int, start: int | None = None) -> list[Document]:
    span = found.spans[number]
    position: int | None = span.start if start is None else start
    documents: list[Document] = []
    while position is not None:
        block, position = found.read(span, position)
        documents += block
    return documents


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", WORDS)
def test_records_are_those_of_the_decoded_file(tmp_path: Path, encoding: str, kind: str) -> None:
    path = tmp_path / "a"
    source, expected = write(path, kind, records(encoding), encoding)
    for span_bytes in (1 << 20, 300, 7):
        found = corpus(path, {**source, "encoding": encoding}, span_bytes=span_bytes)
        read = [read_span(found, number) for number in range(len(found.spans))]
        assert [document.text for part in read for document in part] == expected
        assert found.bad == []
        cut = cuts_at_newlines(normal_name(encoding)) and kind != "file"
        assert (len(found.spans) > 1) == (cut and span_bytes < 1 << 20)
    # From the place of every record, by a process that knows nothing of those before.
    found = corpus(path, {**source, "encoding": encoding}, span_bytes=300)
    for number in range(len(found.spans)):
        documents = read_span(found, number)
        for i, document in enumerate(documents):
            assert (
                read_span(corpus(path, {**source, "encoding": encoding}, span_bytes=300), number, document.position)
                == (documents[i:])
            )


@pytest.mark.parametrize("encoding", ["gb18030", "cp932", "utf-16"])
@pytest.mark.parametrize("kind", ["lines", "jsonl", "csv"])
def test_small_blocks_and_compressed_files_are_read_alike(
    tmp_path: Path, kind: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("separated", "delimited"):
        monkeypatch.setattr(f"data_pipeline.sources.readers.{module}.BLOCK_BYTES", 61)
    monkeypatch.setattr("data_pipeline.sources.readers.storage._OUTPUT_BYTES", 13)
    source, expected = write(tmp_path / "a", kind, records(encoding), encoding)
    (tmp_path / "a.gz").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    for name in ("a", "a.gz"):
        found = corpus(tmp_path / name, {**source, "encoding": encoding})
        assert [document.text for document in read_span(found, 0)] == expected


@pytest.mark.parametrize(("encoding", "kind"), [("gb18030", "jsonl"), ("cp932", "lines"), ("utf-16", "jsonl")])
def test_a_run_resumes_at_every_sample(tmp_path: Path, encoding: str, kind: str) -> None:
    for name in ("a", "b", "c"):
        source, _ = write(tmp_path / name, kind, [f"{name}{text}" for text in records(encoding)], encoding)
    data = config({"paths": [f"{tmp_path}/[abc]"], **source, "encoding": encoding}, lanes=3, shuffle_buffer=6)
    directory = bytes_tokenizer(tmp_path)

    def loader(**more: Any) -> TrainLoader:
        return TrainLoader(data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1, **more)

    with loader() as whole:
        cursors, taken = [], []
        for _ in range(20):
            cursors.append(whole.cursor())
            taken.append(whole.take(3))
    for step, cursor in enumerate(cursors):
        with loader(first_sample=3 * step, cursor=json.loads(json.dumps(cursor))) as resumed:
            batch, ledger = resumed.take(3)
        assert ledger == taken[step][1]
        assert batch.inputs.equal(taken[step][0].inputs)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5", "cp932", "euc_jp", "cp949", "johab"])
@pytest.mark.parametrize("kind", ["lines", "jsonl", "tsv", "delimiter"])
def test_half_a_character_reaches_into_no_other_record(tmp_path: Path, kind: str, encoding: str) -> None:
    """The first byte of a character at the end of a record is invalid, not the beginning of what follows."""
    texts = records(encoding)
    marked = [f"{text}Q" if i % 9 == 4 else text for i, text in enumerate(texts)]
    path = tmp_path / "a"
    source, _ = write(path, kind, marked, encoding)
    path.write_bytes(path.read_bytes().replace(b"Q", b"\x91"))
    for span_bytes in (1 << 20, 100):
        found = corpus(path, {**source, "encoding": encoding}, span_bytes=span_bytes)
        documents = [document for number in range(len(found.spans)) for document in read_span(found, number)]
        assert len(documents) == len(texts)
        for i, (document, text) in enumerate(zip(documents, texts, strict=True)):
            assert document.text.startswith(text)
            assert ("\ufffd" in document.text) == (i % 9 == 4)
        assert found.dropped == {"invalid UTF-8 replaced": sum(i % 9 == 4 for i in range(len(texts)))}


def test_invalid_units_of_utf16_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("one\nt".encode("utf-16") + b"\x00\xd8" + "wo\nthree\n".encode("utf-16-le"))
    found = corpus(path, {"document": "line", "encoding": "utf-16"})
    assert [document.text for document in found.documents()] == ["one", "t\ufffdwo", "three"]
    assert [(bad.line, bad.reason) for bad in found.bad] == [(2, "invalid UTF-8 replaced")]


def test_every_encoding_that_is_cut_at_newlines_may_be() -> None:
    """No character but the newline has its byte."""
    names = ["ascii", "latin-1", "cp437", "mac-roman", "cp1256", "gb2312", "big5hkscs", "shift_jisx0213", "euc_kr"]
    for name in (*names, *WORDS):
        encoding = normal_name(name)
        if not cuts_at_newlines(encoding):
            assert encoding.startswith(("utf-", "iso2022", "hz"))
            continue
        assert not any(b"\n" in chr(code).encode(encoding, errors="ignore") for code in range(0x80, 0x30000, 7))
    for name in ("cp037", "cp500", "utf-7", "iso2022_kr"):
        assert not cuts_at_newlines(name)


DIALECTS: dict[str, dict[str, str]] = {
    # A backslash, a bar and a quote of ASCII are second bytes of characters.
    "escapes": {"kind": "csv", "escape": "\\"},
    "escapes without quotes": {"kind": "tsv", "escape": "\\", "quote": ""},
    "bars": {"kind": "csv", "delimiter": "|", "quote": "'"},
    "quoted tsv": {"kind": "tsv", "quote": '"'},
    "characters of the encoding": {"kind": "csv", "delimiter": "、", "quote": "。"},
}


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "cp932", "utf-16", "iso2022_jp"])
@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_found_in_the_decoded_text(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.sources.readers.delimited.BLOCK_BYTES", 61)
    source = DIALECTS[name]
    quote, escape = source.get("quote", '"'), source.get("escape")
    form: dict[str, Any] = {
        "delimiter": source.get("delimiter", "\t" if source["kind"] == "tsv" else ","),
        "quotechar": quote or None,
        "quoting": csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        "escapechar": escape,
        "lineterminator": "\n",
    }
    texts = [
        text + ["", f"\n{quote}x", f"{form['delimiter']}y", "\\z"][i % 4] for i, text in enumerate(records(encoding))
    ]
    # Rows that are too long, with the last byte of a character in front of what ends them.
    last = WORDS[encoding].split(" ")[0]
    texts[5] = texts[11] = f"\n{quote}{last}{form['delimiter']}" * 100 + last
    file = io.StringIO()
    csv.writer(file, **form).writerows([["n", "text"], *([str(i), text] for i, text in enumerate(texts))])
    path = tmp_path / "a"
    path.write_bytes(file.getvalue().encode(encoding))
    decoded = path.read_bytes().decode(encoding)
    assert [row["text"] for row in csv.DictReader(io.StringIO(decoded), **form)] == texts
    (tmp_path / "a.gz").write_bytes(gzip.compress(path.read_bytes()))
    expected = [text for i, text in enumerate(texts) if i not in (5, 11)]
    options: dict[str, Any] = {"max_document_bytes": 300, "span_bytes": 200}
    for file_name in ("a", "a.gz"):
        found = corpus(tmp_path / file_name, {**source, "encoding": encoding}, **options)
        parts = [read_span(found, number) for number in range(len(found.spans))]
        assert [document.text for part in parts for document in part] == expected
        assert found.dropped == {"too long": 2}
        for number, documents in enumerate(parts):
            for i in range(0, len(documents), 5):
                fresh = corpus(tmp_path / file_name, {**source, "encoding": encoding}, **options)
                assert read_span(fresh, number, documents[i].position) == documents[i:]


@pytest.mark.parametrize(("encoding", "text"), [("gb18030", "今天天气很好"), ("utf-16", "今天")])
def test_quotes_of_tsv_that_nobody_named_are_seen_in_every_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(f'n\ttext\n1\t"{text}""x"""\n'.encode(encoding))
    with pytest.raises(UserError, match=f'{text}""x.*set quote of the source'):
        corpus(path, {"kind": "tsv", "encoding": encoding})
    for quote, expected in (('"', f'{text}"x"'), ("", f'"{text}""x"""')):
        found = corpus(path, {"kind": "tsv", "encoding": encoding, "quote": quote})
        assert [document.text for document in found.documents()] == [expected]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "csv", "quote": "“", "encoding": "big5", "delimiter": "é"}, r"delimiter is 'é', which big5 has no"),
        ({"kind": "csv", "quote": "“", "encoding": "latin-1"}, r"quote is '“', which iso8859-1 has no bytes for"),
        ({"kind": "tsv", "escape": "§", "encoding": "cp866"}, r"escape is '§', which cp866 has no bytes for"),
        ({"kind": "parquet", "encoding": "gbk"}, r"\[0\]\.encoding is gbk, but kind parquet has no encoding"),
        (
            {"delimiter": "|", "encoding": "gbk"},
            r"delimiter is '\|', whose first byte is part of other characters in gbk",
        ),
        ({"delimiter": "。", "encoding": "cp932"}, r"delimiter is '。', whose first byte is part of other"),
        ({"delimiter": "。", "encoding": "cp1252"}, r"delimiter is '。', which cp1252 has no bytes for"),
    ],
)
def test_encodings_that_do_not_fit_are_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    (tmp_path / "a").write_bytes(b"text")
    with pytest.raises(UserError, match=message):
        corpus(tmp_path / "a", source)


def test_names_are_those_that_python_knows() -> None:
    for name in ("nonsense", "rot13", "base64", "idna", "unicode_escape", "", "undefined"):
        with pytest.raises(ValidationError, match="Python knows no text encoding"):
            SourceConfig(encoding=name)
    assert [SourceConfig(encoding=name).encoding for name in ("UTF8", "utf-8-sig", "Latin-1", "GBK")] == [
        "utf-8",
        "utf-8",
        "iso8859-1",
        "gbk",
    ]


def test_a_corpus_is_another_in_another_encoding_and_the_same_in_utf8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    digests = {name: corpus(tmp_path / "a", {"encoding": name}).digest for name in (None, "utf-8", "gbk", "big5")}
    assert digests[None] == digests["utf-8"]
    assert len(set(digests.values())) == 3
    identities = []
    for name in digests:
        data = {"sources": [{"paths": ["a.txt"], "encoding": name}]}
        run = {"run": {"directory": "run"}, "data": data, "train": {"steps": 1, "global_batch": 1}}
        identities.append(identity(parse_config(run)))
    # Without a key, as it was before there was one.
    assert identities[0] == identities[1]
    assert "data.sources.0.encoding" not in identities[0]
    assert [found.get("data.sources.0.encoding") for found in identities[2:]] == ["gbk", "big5"]


def test_cursors_of_before_there_were_encodings_still_fit(tmp_path: Path) -> None:
    """The digest is the one that such a cursor carries."""
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n' * 50)
    (tmp_path / "a.csv").write_text("text,n\nsome text,1\n")
    (tmp_path / "a.txt").write_text("some text\n" * 20)
    sources = [{"kind": "jsonl"}, {"kind": "csv"}, {"document": "line"}]
    found = Corpus(
        [
            SourceConfig.model_validate({"paths": [str(tmp_path / f"a.{name}")], **source})
            for name, source in zip(("jsonl", "csv", "txt"), sources, strict=True)
        ],
        span_bytes=100,
        holdout=0.1,
    )
    assert found.digest == "82a3ad7761d908ed1cb963b5730301babc3621d7f7423ab5c6bd0e4a9a4ec579"
