"""CSV and TSV as people write them, against what pandas and the standard library read."""

from __future__ import annotations

import csv
import gzip
import random
import re
from pathlib import Path
from typing import Any

import pandas
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.corpus import Corpus
from llmscale.config import identity, parse_config, require_same_identity


def corpus(path: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [str(path)], **source})], **options)


def read(found: Corpus) -> list[str]:
    return [document.text for document in found.documents()]


def pandas_texts(path: Path, **options: Any) -> list[str]:
    table = pandas.read_csv(path, dtype=str, keep_default_na=False, lineterminator="\n", **options)
    return [str(text) for text in table["text"] if str(text).strip()]


UNQUOTED = {
    "an opening quote": 'id\ttext\n3\t"x\n4\ty\n7\tz"\n',
    "sentences of a review": 'text\tlabel\n"a gorgeous , witty film . \t1\n\'\' and "" long\t0\n5\'10" tall\t1\n',
    "tokens with their tags": 'text\tlemma\ttag\n"\t"\tPUNCT\nHello\thello\tINTJ\n"\t"\tPUNCT\n\'\t\'\tPUNCT\n',
    "no newline at the end": 'text\n"a\nb"',
}


@pytest.mark.parametrize("name", UNQUOTED)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_quotes_in_tsv_are_ordinary_characters(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a.tsv{suffix}"
    data = UNQUOTED[name].encode()
    path.write_bytes(gzip.compress(data) if suffix else data)
    expected = pandas_texts(path, sep="\t", quoting=csv.QUOTE_NONE)
    assert len(expected) == UNQUOTED[name].strip().count("\n")
    found = corpus(path, {"kind": "tsv"}, span_bytes=7)
    assert read(found) == expected
    assert found.bad == []


@pytest.mark.parametrize(
    ("texts", "certain"),
    [(['He said "no"\nand left', "b"], True), (["b", 'say "x"'], True), (['"', "b"], True), (["a\tb", "c\nd"], False)],
)
def test_tsv_of_pandas_is_read_with_its_quotes_and_refused_where_nobody_says(
    tmp_path: Path, texts: list[str], certain: bool
) -> None:
    path = tmp_path / "a.tsv"
    pandas.DataFrame({"n": range(len(texts)), "text": texts}).to_csv(path, sep="\t", index=False)
    assert read(corpus(path, {"kind": "tsv", "quote": '"'})) == texts
    raw = path.read_text()
    if certain:
        with pytest.raises(UserError, match=r"a\.tsv has the text .*; set quote of the source to '\"' to read it as"):
            corpus(path, {"kind": "tsv"})
    else:
        # What is cut by it has too many or too few fields, which is told.
        found = corpus(path, {"kind": "tsv"}, max_document_bytes=100)
        assert read(found) == ['"c']
        assert [bad.line for bad in found.bad] == [2, 4]
    # Asked for, they are what they are.
    found = corpus(path, {"kind": "tsv", "quote": ""})
    assert read(found) == [row[1] for line in raw.splitlines()[1:] if len(row := line.split("\t")) == 2]


DIALECTS: dict[str, dict[str, Any]] = {
    "MySQL's": {"escape": "\\", "quote": '"'},
    "MySQL's without quotes": {"escape": "\\", "quote": "", "delimiter": "\t"},
    "of a German spreadsheet": {"delimiter": ";"},
    "with apostrophes": {"quote": "'", "delimiter": "|"},
    "of letters beyond ASCII": {"quote": "“", "delimiter": "、", "escape": "\u2044"},
}


@pytest.mark.parametrize("name", DIALECTS)
@settings(deadline=None, max_examples=25)
@given(
    table=st.lists(st.tuples(st.text(alphabet="ab\\\";|'\t\né“、\u2044 ", max_size=9), st.text("x;\\\"'", min_size=1))),
    span_bytes=st.integers(1, 60),
)
def test_every_dialect_is_read_as_the_standard_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, table: list[tuple[str, str]], span_bytes: int
) -> None:
    source = DIALECTS[name]
    quote, escape = source.get("quote", '"'), source.get("escape")
    form: dict[str, Any] = {
        "delimiter": source.get("delimiter", ","),
        "quotechar": quote or None,
        "quoting": csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        "escapechar": escape,
        "doublequote": escape is None,
        "lineterminator": "\n",
    }
    path = tmp_path_factory.mktemp("dialect") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **form).writerows([("text", "other"), ("first", "x"), *table])
    with open(path, newline="", encoding="utf-8") as file:
        form["doublequote"] = True
        expected = [row["text"] for row in csv.DictReader(file, **form) if row["text"] and row["text"].strip()]
    found = corpus(path, {"kind": "csv", **source}, span_bytes=span_bytes)
    assert read(found) == expected
    assert [text for text, _ in [("first", "x"), *table] if text.strip()] == expected


def test_escapes_and_doubled_quotes_are_read_as_pandas_and_arrow_read_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'text,n\n"He said \\"no\\", twice",1\n"He said ""yes""",2\n"C:\\\\new\\nline",3\n"two\nlines \\\\",4\n'
        "plain \\, comma,5\n"
    )
    expected = pandas_texts(path, escapechar="\\", doublequote=True)
    parsed = pyarrow.csv.ParseOptions(escape_char="\\", newlines_in_values=True)
    assert pyarrow.csv.read_csv(path, parse_options=parsed)["text"].to_pylist() == expected
    found = corpus(path, {"kind": "csv", "escape": "\\"}, span_bytes=9)
    assert read(found) == expected
    assert expected[0] == 'He said "no", twice'
    # Without the setting a backslash is a character, and what then does not fit is told.
    found = corpus(path, {"kind": "csv"})
    assert read(found) == ['He said "yes"', "C:\\\\new\\nline", "two\nlines \\\\"]
    assert [bad.line for bad in found.bad] == [2, 7]


def long_rows(draw: random.Random) -> tuple[str, list[str], list[int]]:
    """A file with rows of more than 100,000 bytes, its other texts, and the lines of the long rows."""
    data, texts, places = "text,n\n", [], []
    for i in range(60):
        if i % 20 == 7:
            filling = draw.choice(['x ""y"", z\n', "line, of a long text\n", "\n", "é" * 70_000])
            places.append(1 + data.count("\n"))
            data += f'"{filling * (1 + 140_000 // len(filling))}",{i}\n'
        else:
            texts.append(f"{i} " + draw.choice(["short", "with\nnewline", "a" * 70_000, 'with "quotes"']))
            quoted = texts[-1].replace('"', '""')
            data += f'"{quoted}",{i}\n'
    return data, texts, places


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_no_line_of_a_row_that_is_too_long_is_a_row(tmp_path: Path, suffix: str) -> None:
    data, texts, places = long_rows(random.Random(4))
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(gzip.compress(data.encode()) if suffix else data.encode())
    found = corpus(path, {"kind": "csv"}, max_document_bytes=100_000, span_bytes=90_000)
    assert read(found) == texts
    assert [(bad.reason, bad.line) for bad in found.take_bad()] == [("too long", line) for line in places]
    documents = list(found.documents())
    for document in documents[::7]:
        [span] = [span for span in found.spans if span.start <= document.position < span.stop]
        assert found.read(span, document.position)[0][0] == document


@pytest.mark.parametrize("tail", ["", '"b" more,2\n', 'b"\n'])
def test_lines_behind_a_quote_that_is_never_closed_are_rows(tmp_path: Path, tail: str) -> None:
    """The next quote, if any, stands where none may end a field, or makes a row with too few of them."""
    rows = "".join(f"row {i},{i}\n" for i in range(20_000))
    (tmp_path / "a.csv").write_text(f'text,n\nfirst,0\n"stray,1\n{rows}{tail}')
    found = corpus(tmp_path / "a.csv", {"kind": "csv"}, max_document_bytes=100_000)
    texts = read(found)
    if tail == 'b"\n':
        # It is a row by the book: told with its size, whatever is in it.
        assert texts == ["first"]
        assert [(bad.reason, bad.line) for bad in found.bad] == [("too long", 3)]
        size = len('"stray,1\n' + rows + tail)
        assert found.bad[0].detail.startswith(f"{size} bytes")
    else:
        assert texts == ["first", *(f"row {i}" for i in range(20_000))]
        assert found.bad[0].line == 3


def config(**source: Any) -> Any:
    return parse_config(
        {
            "run": {"directory": "runs/a"},
            "data": {"sources": [{"paths": ["a"], **source}]},
            "model": {"hidden_size": 48, "heads": 12},
        }
    )


def test_a_run_that_read_quoted_tsv_is_told_and_goes_on_with_its_quotes() -> None:
    recorded = identity(config(kind="tsv", quote='"'))
    with pytest.raises(UserError, match=r"trained with data\.sources\.0\.quote = '\"', but the config says ''"):
        require_same_identity(config(kind="tsv"), recorded, "runs/a")
    require_same_identity(config(kind="tsv", quote='"'), recorded, "runs/a")
    assert parse_config(config(kind="tsv").model_dump(mode="json")) == config(kind="tsv")
    assert config(kind="csv").data.sources[0].quote == config().data.sources[0].quote == '"'


def test_files_of_earlier_runs_keep_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text('text,n\n"one\ntwo",1\nthree,2\n')
    Path("a.tsv").write_text('text\tn\n"one\ntwo"\t1\nthree\t2\n')
    # Written down before there were escapes.
    known = {
        "csv": "3f2b793b9ac45120b7b5998fc473df9839a66f9228cf9b51003be58debf16aa9",
        "tsv": "954efd5b842c60752f1a3ba6c1618d79d2bc44d08ff12e083b1b2d1f544ba4f7",
    }
    for kind, digest in known.items():
        found = corpus(Path(f"a.{kind}"), {"kind": kind, "quote": '"'})
        assert (found.digest, read(found)) == (digest, ["one\ntwo", "three"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "csv", "delimiter": "::"}, "delimiter is '::', but kind csv needs one character"),
        ({"kind": "tsv", "quote": "\t"}, r"delimiter and quote are both '\\t'; give two"),
        ({"kind": "csv", "escape": '"'}, "quote and escape are both '\"'; give two"),
        ({"kind": "csv", "delimiter": "\n"}, r"delimiter is '\\n', which ends a row"),
        ({"kind": "csv", "quote": "\r"}, r"quote is '\\r', which ends a row"),
        ({"kind": "jsonl", "escape": "\\"}, "but kind jsonl has no escapes"),
        ({"kind": "csv", "escape": ""}, "escape"),
    ],
)
def test_characters_that_tell_nothing_apart_are_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**source)


@pytest.mark.parametrize("encoding", ["gbk", "cp932", "cp1252", "koi8_r"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_in_another_encoding_than_ascii_rows_is_told(tmp_path: Path, kind: str, encoding: str) -> None:
    names = {"gbk": "编号 正文", "cp932": "ひづけ なまえ", "cp1252": "numéro créé", "koi8_r": "номер текст"}[
        encoding
    ].split()
    separator = "," if kind == "csv" else "\t"
    rows = [names, *([str(i), f"plain text {i}"] for i in range(50))]
    path = tmp_path / f"a.{kind}"
    path.write_bytes("".join(separator.join(row) + "\n" for row in rows).encode(encoding))
    source = {"kind": kind, "paths": [str(path)], "field": names[1]}
    with pytest.raises(UserError, match=f"{path} has a header that is not utf-8 but probably") as caught:
        Corpus([SourceConfig.model_validate(source)])
    named = str(caught.value).partition("encoding of the source to ")[2].partition(",")[0]
    found = Corpus([SourceConfig.model_validate({**source, "encoding": named})])
    assert [document.text for document in found.documents()] == [row[1] for row in rows[1:]]


@pytest.mark.parametrize(
    ("kind", "data", "setting", "value"),
    [
        ("tsv", '"id"\t"text"\n3\t"a b"\n4\t"c"\n', "quote", '"'),
        ("tsv", 'id\ttext\n3\t"a b"\n4\t"c"\n', "quote", '"'),
        ("csv", "id;text\n3;a b\n4;c\n", "delimiter", ";"),
        ("csv", "id\ttext\n3\ta b\n4\tc\n", "delimiter", "\t"),
        ("tsv", "id,text\n3,a b\n4,c\n", "delimiter", ","),
        ("csv", "id|text\n3|a b\n4|c\n", "delimiter", "|"),
    ],
)
def test_the_dialect_of_a_file_is_told_by_its_first_rows(
    tmp_path: Path, kind: str, data: str, setting: str, value: str
) -> None:
    path = tmp_path / "a"
    path.write_text(data)
    source: dict[str, Any] = {"kind": kind, "paths": [str(path)]}
    with pytest.raises(UserError, match=rf"set {setting} of the source to {re.escape(repr(value))}"):
        Corpus([SourceConfig.model_validate(source)])
    found = Corpus([SourceConfig.model_validate({**source, setting: value})])
    assert [document.text for document in found.documents()] == ["a b", "c"]


RETURNS = ["a\rb", "\rc", "d\r\re", 'f"g"\rh', "last\r"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_carriage_returns_within_a_text_end_no_row(tmp_path: Path, quote: str, end: str) -> None:
    path = tmp_path / "a"
    rows = ["n\ttext\tz", *(f"{i}\t{text}\tz" for i, text in enumerate(RETURNS))]
    rows += [f'9\t"x{end}\ry"\tz'] * bool(quote)
    path.write_bytes(end.join(rows).encode())
    source = SourceConfig(kind="tsv", paths=[str(path)], quote=quote)
    for span_bytes in (1 << 20, 9):
        found = Corpus([source], span_bytes=span_bytes)
        assert [d.text for d in found.documents()] == [*RETURNS, *[f"x{end}\ry"] * bool(quote)]
        assert found.dropped == {}
    # Such rows were none before, and still are in runs that began then.
    found.read_as(1)
    assert [d.text for d in found.documents()] == [f"x{end}\ry"] * bool(quote)
    # A row that is too long is one record, whatever is in it.
    path.write_bytes(f"n\ttext{end}1\t{'long' * 999}\rx{end}2\ty{end}".encode())
    found = Corpus([source], max_document_bytes=300)
    assert ([d.text for d in found.documents()], found.dropped) == (["y"], {"too long": 1})


def test_rows_that_end_at_carriage_returns_alone_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("n,text\r1,a\r2,b\r", newline="")
    with pytest.raises(UserError, match="carriage returns alone"):
        Corpus([SourceConfig(kind="csv", paths=[str(tmp_path / "a")])])
