"""Texts of records with absent fields and odd JSON, against what the standard library makes of the same lines."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.open_samples import open_samples
from data_pipeline.sources.corpus import Corpus
from data_pipeline.stream.samples import StreamSamples
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts

# As in Alpaca's data, of which a third has no input.
RECORDS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Name a colour.", "input": None, "output": "red"},
    {"instruction": "Sort.", "input": "b a", "output": "a b"},
    {"instruction": "Greet.", "output": "Hello."},
    {"instruction": "Say nothing.", "input": "", "output": None},
]
TEMPLATES = {"field": "{instruction}\n{input}", "target_field": "{output}{input}"}


def corpus(path: Path, source: dict[str, Any], **options: Any) -> Corpus:
    return Corpus([SourceConfig.model_validate({"paths": [str(path)], **source})], **options)


def pairs(found: Corpus) -> list[tuple[str, str | None]]:
    return [(document.text, document.target) for document in found.documents()]


def filled(records: list[dict[str, Any]], defaults: dict[str, str]) -> list[tuple[str, str]]:
    whole = [
        {name: defaults.get(name) if row.get(name) is None else row[name] for name in RECORDS[0]} for row in records
    ]
    return [
        (f"{row['instruction']}\n{row['input']}", f"{row['output']}{row['input']}")
        for row in whole
        if None not in row.values()
    ]


def write(path: Path, kind: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    if kind in ("jsonl", "datasets"):
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
        return {"kind": "jsonl"} if kind == "jsonl" else {"kind": "datasets", "name": "json"}
    table = pyarrow.Table.from_pylist(records)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return {"kind": kind}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "datasets"])
@pytest.mark.parametrize("defaults", [{}, {"input": ""}, {"input": "none", "output": "?"}])
def test_a_default_stands_for_absent_and_null_fields(tmp_path: Path, kind: str, defaults: dict[str, str]) -> None:
    source = write(tmp_path / "a", kind, RECORDS)
    expected = filled(RECORDS, defaults)
    found = corpus(tmp_path / "a", {**source, **TEMPLATES, "defaults": defaults})
    assert pairs(found) == expected
    used = len(expected) - len(filled(RECORDS, {}))
    absent = len(RECORDS) - len(expected)
    counts = {"absent field filled": used, "no text in the field": absent}
    assert found.dropped == {reason: count for reason, count in counts.items() if count}
    assert len(found.bad) == absent
    # A default is no licence: strict reading stops at what has none, and only there.
    strict = corpus(tmp_path / "a", {**source, **TEMPLATES, "defaults": defaults}, on_bad_record="fail")
    if absent:
        with pytest.raises(UserError, match="no text in the field"):
            pairs(strict)
    else:
        assert pairs(strict) == expected


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
def test_a_column_that_a_whole_file_lacks_takes_its_default(tmp_path: Path, kind: str) -> None:
    records = [{"instruction": f"do {i}", "output": f"done {i}"} for i in range(5)]
    if kind == "csv":
        with open(tmp_path / "a", "w", newline="") as file:
            writer = csv.DictWriter(file, ["output", "instruction"])
            writer.writeheader()
            writer.writerows(records)
        source: dict[str, Any] = {"kind": "csv"}
    else:
        source = write(tmp_path / "a", kind, records)
    found = corpus(tmp_path / "a", {**source, **TEMPLATES, "defaults": {"input": "-"}})
    assert pairs(found) == [(f"do {i}\n-", f"done {i}-") for i in range(5)]
    assert found.dropped == {"absent field filled": 5}
    with pytest.raises(UserError, match=r"has no field 'input' but"):
        corpus(tmp_path / "a", {**source, **TEMPLATES})
    # Not one of the fields: that is a wrong name, default or not.
    with pytest.raises(UserError, match=r"has no field 'body' but"):
        corpus(tmp_path / "a", {**source, "field": "body", "defaults": {"body": "x"}})


def test_a_default_serves_a_field_without_template_and_no_other_type(tmp_path: Path) -> None:
    source = write(tmp_path / "a", "jsonl", [{"text": "a"}, {"text": None}, {"n": 1}, {"text": 7}, {"text": ""}])
    found = corpus(tmp_path / "a", {**source, "defaults": {"text": "nothing"}})
    assert [text for text, _ in pairs(found)] == ["a", "nothing", "nothing"]
    assert found.dropped == {"absent field filled": 2, "no text in the field": 1, "empty": 1}
    assert [bad.detail for bad in found.bad] == ["'text' is a number, not a string"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"kind": "jsonl", "defaults": {"inptu": ""}},
            r"defaults has 'inptu', but the fields that are read are 'text'",
        ),
        ({"kind": "text", "defaults": {"text": ""}}, r"defaults is .* but kind text has no fields"),
    ],
)
def test_defaults_of_no_field_are_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    (tmp_path / "a").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=message):
        corpus(tmp_path / "a", source)


def no_json(constant: str) -> None:
    raise ValueError(constant)


def python_text(line: str) -> str | None:
    """What the standard library reads, with halves of characters replaced; None where it is no JSON."""
    try:
        text = json.loads(line, parse_constant=no_json, parse_int=float)["text"]
    except ValueError:
        return None
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


LINES = {
    "a high surrogate": (r'{"text": "a\ud83d"}', True),
    "a low surrogate": (r'{"text": "\ude00b", "n": 1}', True),
    "the wrong way round": (r'{"text": "\ude00\ud83d!"}', True),
    "half and whole": (r'{"text": "\ud83d\ud83d\ude00"}', True),
    "behind a backslash": (r'{"text": "\\ud83d \\\ud83d \n"}', True),
    "in another field": (r'{"text": "fine \\\\ \ud83d\ude00", "name": "\uDBFF"}', True),
    "in a name": (r'{"\ud800": 1, "text": "x"}', True),
    "in no JSON": (r'{"text": "\ud83d"', True),
    "no digits": (r'{"text": "\ud8zz"}', True),
    "a number beyond double precision": ('{"text": "x", "n": 1e999}', False),
    "a number of 400 digits": (f'{{"text": "x", "n": {"9" * 400}}}', False),
    "a number of 5,000 digits": (f'{{"text": "x", "n": -{"9" * 5000}}}', False),
    "a number of many decimals": (f'{{"text": "x", "n": 0.{"9" * 5000}}}', False),
    "NaN": ('{"text": "x", "n": NaN}', False),
    "infinity": ('{"text": "x", "n": [1e999, -Infinity]}', False),
    "a name twice": ('{"text": "a", "text": "b"}', False),
    "a name twice with a large number": ('{"text": "a", "n": 1e999, "text": "b"}', False),
    "a leading zero": ('{"text": "a", "n": 01}', False),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("field", ["text", "{text}"])
def test_odd_json_is_what_the_standard_library_reads(tmp_path: Path, name: str, field: str) -> None:
    line, repaired = LINES[name]
    expected = python_text(line)
    (tmp_path / "a.jsonl").write_text(f'{{"text": "first"}}\n{line}\n{{"text": "last"}}\n')
    found = corpus(tmp_path / "a.jsonl", {"kind": "jsonl", "field": field})
    assert [text for text, _ in pairs(found)] == ["first", *([] if expected is None else [expected]), "last"]
    reasons = (
        []
        if expected is not None and not repaired
        else ["not JSON" if expected is None else "lone surrogates replaced"]
    )
    assert [(bad.reason, bad.line) for bad in found.bad] == [(reason, 2) for reason in reasons]
    strict = corpus(tmp_path / "a.jsonl", {"kind": "jsonl", "field": field}, on_bad_record="fail")
    if reasons:
        with pytest.raises(UserError, match=rf"a\.jsonl:2: {reasons[0]} \("):
            pairs(strict)
    else:
        assert len(pairs(strict)) == 3


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(
        st.text(st.sampled_from('a"\\\n\ud83d\ude00\ud800\udfff\U0001f600u'), min_size=1, max_size=8), min_size=1
    )
)
def test_any_text_survives_json_with_its_halves_replaced(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    # A source without any text would be refused.
    lines = [json.dumps({"text": row, "n": math.pi}) for row in ["sound", *rows]]
    path.write_text("".join(line + "\n" for line in lines))
    expected = [text for line in lines if (text := python_text(line)) and text.strip()]
    assert [text for text, _ in pairs(corpus(path, {"kind": "jsonl"}, span_bytes=30))] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_began_without_repairs_goes_on_without_them(tmp_path: Path, workers: int) -> None:
    """Its samples are those of a file in which the same lines are no JSON."""
    lines = [json.dumps({"text": text + ("\udfaa" if i % 2 else "")}) for i, text in enumerate(texts(200))]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    (tmp_path / "none.jsonl").write_text("\n".join(line.replace(r"\udfaa", r"\z1234") for line in lines))
    directory = bytes_tokenizer(tmp_path)

    def loader(name: str, cursor: dict[str, Any] | None = None) -> TrainLoader:
        data = config({"kind": "jsonl", "paths": [f"{tmp_path}/{name}.jsonl"]}, lanes=4, workers=workers)
        first = cursor["next_sample"] if cursor else 0
        return TrainLoader(
            data, load_tokenizer(directory), seed=0, dp_rank=0, dp_size=1, first_sample=first, cursor=cursor
        )

    def rows(taken: TrainLoader, count: int) -> list[list[int]]:
        return taken.take(count)[0].inputs.tolist()

    with loader("none") as reference:
        expected = [rows(reference, 16) for _ in range(3)]
    with loader("odd") as new:
        assert [rows(new, 16) for _ in range(3)] != expected
    # The cursor of such a run, made by the reading of then.
    with loader("odd") as old:
        assert isinstance(old.samples, StreamSamples)
        old.samples.corpus.read_as(1)
        del old.samples.settings["reading"]
        assert [rows(old, 16) for _ in range(2)] == expected[:2]
        cursor = json.loads(json.dumps(old.cursor()))
    with loader("odd", cursor) as resumed:
        assert rows(resumed, 16) == expected[2]
        assert resumed.cursor()["settings"] == cursor["settings"]


def test_targets_that_an_objective_does_not_read_are_left_out(tmp_path: Path) -> None:
    """As a finite set and in evaluation too, as in a stream."""
    write(tmp_path / "a.jsonl", "jsonl", [{"text": text, "aim": "x"} for text in texts(40)])
    directory = bytes_tokenizer(tmp_path)
    samples, sets = [], []
    for more in ({}, {"target_field": "aim"}):
        source = {"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")], **more}
        data = config(source, order="finite", evaluation=[source])
        opened = open_samples(data, load_tokenizer(directory), CausalObjective(), seed=0, cache=tmp_path / "cache")
        samples.append(opened.make(range(20)).arrays["tokens"].tolist())
        sets.append(build_evaluation_set(data, load_tokenizer(directory), tmp_path / "cache"))
    assert samples[0] == samples[1]
    assert sets[0].documents == sets[1].documents == 40
    assert (sets[0].tokens, sets[0].bytes) == (sets[1].tokens, sets[1].bytes)
    assert sets[0].batch([0, 1]).targets.tolist() == sets[1].batch([0, 1]).targets.tolist()


@pytest.mark.parametrize("place", ["evaluation", "sources"])
def test_pairs_to_evaluate_on_need_targets(tmp_path: Path, place: str) -> None:
    write(tmp_path / "a.jsonl", "jsonl", [{"text": text, "aim": "x"} for text in texts(40)])
    source = {"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}
    sources = [{**source, "target_field": "aim"}, source]
    held = {"evaluation": sources} if place == "evaluation" else {"holdout": 0.5}
    data = config(*(sources if place == "sources" else sources[:1]), **held)
    with pytest.raises(UserError, match=rf"seq2seq, but data\.{place}[\[.]1\]? has no target_field; name the field"):
        build_evaluation_set(
            data, load_tokenizer(bytes_tokenizer(tmp_path)), tmp_path / "cache", objective=Seq2SeqObjective()
        )


@pytest.mark.parametrize("source", [{"field": "{a}\ud83d"}, {"field": "{a}{b}", "defaults": {"b": "\udcff"}}])
def test_texts_of_the_config_that_are_no_unicode_are_refused(tmp_path: Path, source: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n')
    with pytest.raises(UserError, match=r"data\.sources\[0\]\.(field|defaults\.b) is .*half of a character"):
        corpus(tmp_path / "a.jsonl", {"kind": "jsonl", **source})
