"""Records come from files of every form, from folders by split and subset, below a data root, and from the hub."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate.tasks import DATA_ROOT, load_task
from tests.evaluate.tasks.files import CAPITALS, write_lines, write_task

GENERATE: dict[str, Any] = {
    "kind": "generate",
    "context": "{{ q }}",
    "references": ["{{ a }}"],
    "answers": None,
    "gold": None,
}
PAIRS = [("x\ty", "ü"), ('say "hi"', "你好"), ("third", "3")]
RECORDS = [{"q": q, "a": a} for q, a in PAIRS]


def asked(folder: Path, data: dict[str, Any], given: str | None = None, **changes: Any) -> list[tuple[str, str]]:
    task = load_task(write_task(folder, GENERATE | {"data": data} | changes), given)
    return [(item.contexts[0], item.references[0]) for item in task.items()]


def write_table(path: Path, delimiter: str, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def test_files_of_every_form(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "b.json").write_text(json.dumps(RECORDS, indent=1))
    write_lines(tmp_path / "c.json", RECORDS)
    write_table(tmp_path / "d.csv", ",", [("q", "more", "a"), *((q, "-", a) for q, a in PAIRS)])
    write_table(tmp_path / "e.tsv", "\t", [("q", "a"), *PAIRS])
    table = pyarrow.Table.from_pylist([{**record, "more": [1]} for record in RECORDS])
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    with pyarrow.ipc.new_stream(str(tmp_path / "g.arrow"), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "h.unknown").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for name in ("a.jsonl", "b.json", "c.json", "d.csv", "f.parquet", "g.arrow"):
        assert asked(tmp_path, {"files": [name]}) == PAIRS, name
    assert asked(tmp_path, {"files": ["e.tsv"], "quote": '"'}) == PAIRS
    assert asked(tmp_path, {"files": ["h.unknown"], "format": "jsonl"}) == PAIRS
    assert asked(tmp_path, {"files": ["[ab].json*"]}) == PAIRS * 2


@pytest.mark.parametrize("header", [[], [("q", "a")]])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_without_a_header_row(header: list[tuple[str, str]], mark: str, tmp_path: Path) -> None:
    rows = [("first", "1"), ('"quoted', "2"), ("q", "a b"), ("fourth", "4")]
    text = "".join("\t".join(row) + "\n" for row in header + rows)
    (tmp_path / "data.txt").write_text(mark + text, encoding="utf-8")
    data = {"files": ["data.txt"], "format": "tsv", "columns": ["q", "a"], "quote": ""}
    assert asked(tmp_path, data) == rows
    with pytest.raises(UserError, match="has 2 columns, but 3 are named: q, a, b; name all of them"):
        asked(tmp_path, {**data, "columns": ["q", "a", "b"]})
    write_table(tmp_path / "data.csv", ",", [*header, ("a,b", 'say "x"'), ("two\nlines", "2")])
    expected = [("a,b", 'say "x"'), ("two\nlines", "2")]
    assert asked(tmp_path, {"files": ["data.csv"], "columns": ["q", "a"]}) == expected


def test_a_large_table_without_header_is_read_once(tmp_path: Path) -> None:
    rows = [(f"question {i} " + "x" * 90, str(i)) for i in range(5000)]
    (tmp_path / "data.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert asked(tmp_path, {"files": ["data.tsv"], "columns": ["q", "a"], "quote": ""}) == rows


def test_nested_json(tmp_path: Path) -> None:
    """SQuAD's form: what lies deeper wins, and has what lies above it."""
    questions = [{"q": "1", "a": "x"}, {"q": "2", "a": "y", "id": "i"}]
    articles = [
        {"title": "T", "id": "t", "paragraphs": [{"context": "C", "qas": questions}]},
        {"title": "U", "id": "u", "paragraphs": []},
    ]
    nested = {"version": "1", "data": articles}
    (tmp_path / "squad.json").write_text(json.dumps(nested))
    data = {"files": ["squad.json"], "records": "data.paragraphs.qas"}
    context = "{{ title }}{{ context }}{{ id }}{{ q }}"
    assert asked(tmp_path, data, context=context) == [("TCt1", "x"), ("TCi2", "y")]
    with pytest.raises(UserError, match=r"squad\.json: it has no 'paragraph' but 'title', 'id', 'paragraphs' on"):
        asked(tmp_path, {**data, "records": "data.paragraph"})
    (tmp_path / "squad.json").write_text('{"data": [1]}')
    with pytest.raises(UserError, match=r"squad\.json: it has int where records should be; correct records"):
        asked(tmp_path, {**data, "records": "data"})
    (tmp_path / "squad.json").write_text('{"data": ')
    with pytest.raises(UserError, match=r"squad\.json is no JSON: .*; repair the file"):
        asked(tmp_path, data)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [" = A = \n one\n = = B = = \n\n = C = \n two\n"]),
        ({"document": "line"}, [" = A = ", " one", " = = B = = ", " = C = ", " two"]),
        ({"begins": " = [^=]"}, [" = A = \n one\n = = B = = \n", " = C = \n two\n"]),
        ({"begins": " two"}, [" = A = \n one\n = = B = = \n\n = C = ", " two\n"]),
    ],
)
def test_plain_text(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" = A = \n one\n = = B = = \n\n = C = \n two\n")
    changes = {"kind": "perplexity", "text": "{{ text }}", "context": None, "answers": None, "gold": None}
    task = load_task(write_task(tmp_path, changes | {"data": {"files": ["wiki.txt"], **settings}}))
    assert [item.answers[0] for item in task.items()] == expected


def test_files_that_belong_together_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "test.de").write_bytes("Hallo\nWelt\r\nß\n".encode())
    (tmp_path / "test.en").write_text("hello\nworld\nss")
    data = {"parallel": {"q": "{split}.de", "a": "{split}.en"}, "split": "t", "split_files": {"t": "test"}}
    expected = [("Hallo", "hello"), ("Welt", "world"), ("ß", "ss")]
    assert asked(tmp_path, data) == expected
    other = tmp_path / "other"
    other.mkdir()
    assert asked(other, data, str(tmp_path)) == expected
    (tmp_path / "test.en").write_text("hello\n")
    with pytest.raises(
        UserError, match=r"equally many|as many lines each, but .*test\.de has 3, .*test\.en has 1; correct"
    ):
        asked(tmp_path, data)


def test_encodings(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("q,a\n问题,答案\n".encode("gb18030"))
    assert asked(tmp_path, {"files": ["data.csv"], "encoding": "gbk"}) == [("问题", "答案")]
    with pytest.raises(UserError, match=r"data\.csv"):
        asked(tmp_path, {"files": ["data.csv"]})


HUB = {"hub": "someone/things", "subset": ["a", "b", "c"], "split": "validation"}


@pytest.mark.parametrize(
    "layout",
    [
        "{subset}/{split}/data-00000-of-00001.jsonl",
        "{split}/{subset}.jsonl",
        "{subset}_{split}.jsonl",
        "data/{subset}/{split}-00000.jsonl",
        "{subset}/dev.jsonl",
        "val/{subset}_val.jsonl",
    ],
)
def test_folders_by_subset_and_split(layout: str, tmp_path: Path) -> None:
    data = tmp_path / "folder"
    for subset in ("a", "b"):
        for split in ("train", "validation"):
            if split != "train" or "{split}" in layout:
                record = {"q": f"{subset}{split}", "a": "x"}
                write_lines(data / layout.format(subset=subset, split=split), [record])
    write_lines(data / "dataset_info.json", [{"x": 1}])
    changes = GENERATE | {"data": HUB, "context": "{{ subset }} {{ q }}"}
    task = load_task(write_task(tmp_path, changes), str(data))
    assert [item.contexts[0] for item in task.items()] == ["a avalidation", "b bvalidation"]
    assert task.warnings == [
        f"warning: task capitals: {data} lacks 1 of 3 subsets (c) of split validation; the score is of the others"
    ]


def test_a_split_of_several_words_is_found_in_names_of_files(tmp_path: Path) -> None:
    for name in ("train_few_all", "test_public", "data_test_private"):
        write_lines(tmp_path / f"{name}.jsonl", [{"q": name, "a": "x"}])
    for split, expected in {"test_public": "test_public", "train_few_all": "train_few_all"}.items():
        assert asked(tmp_path, {"hub": "someone/things", "split": split}, str(tmp_path)) == [(expected, "x")]
    with pytest.raises(UserError, match="has no file of split 'public_test'; name"):
        asked(tmp_path, {"hub": "someone/things", "split": "public_test"}, str(tmp_path))


def test_a_subset_is_its_whole_name(tmp_path: Path) -> None:
    for subset in ("law", "college_law"):
        write_lines(tmp_path / "validation" / f"{subset}.jsonl", [{"q": subset, "a": "x"}])
    data = {**HUB, "subset": ["law", "college_law"]}
    assert asked(tmp_path, data, str(tmp_path)) == [("law", "x"), ("college_law", "x")]


def test_a_folder_without_the_split_and_a_file_for_two(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", RECORDS)
    data = {"hub": "someone/things", "split": "test"}
    with pytest.raises(UserError, match=r"has no file of split 'test'; name the file with --data capitals=PATH"):
        asked(tmp_path, data, str(tmp_path))
    task = load_task(write_task(tmp_path, GENERATE | {"data": data, "few_shot": {"split": "train"}}), str(path))
    assert len(task.items()) == 3
    with pytest.raises(UserError, match=r"needs split 'train', too, but .* add --data capitals:train=PATH, or give a"):
        task.items(few_shot=1)
    paths = {None: str(path), "train": str(path)}
    assert load_task(task.path.as_posix(), paths).items(few_shot=2)[0].contexts[0].endswith("\n\nx\ty")


def test_a_folder_of_subsets_that_names_no_split(tmp_path: Path) -> None:
    for subset in ("law", "art"):
        write_lines(tmp_path / f"{subset}.jsonl", [{"q": subset, "a": "x"}])
    data = {**HUB, "subset": ["law", "art"], "split": "train"}
    assert asked(tmp_path, data, str(tmp_path)) == [("law", "x"), ("art", "x")]
    path = write_task(tmp_path, GENERATE | {"data": data, "few_shot": {"split": "validation"}})
    with pytest.raises(UserError, match=r"has no file of split 'validation'"):
        load_task(path, str(tmp_path)).items(few_shot=1)


def test_a_data_root_by_task_by_data_set_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(tmp_path, GENERATE | {"data": {"hub": "someone/things", "subset": "main", "split": "test"}})
    for place in ("capitals", "someone/things", "things", "Things", "someone/things/main", "main", "MAIN"):
        root = tmp_path / place.replace("/", "-")
        write_lines(root / place / "test.jsonl", [{"q": place, "a": "x"}])
        assert load_task(path, data_root=str(root)).items()[0].contexts == (place,)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path / "things"))
    assert load_task(path).items()[0].contexts == ("things",)
    for name in ("capitals.jsonl", "things.jsonl", "Things.test.jsonl", "main.jsonl"):
        root = tmp_path / f"file-{name}"
        write_lines(root / name, [{"q": name, "a": "x"}])
        assert load_task(path, data_root=str(root)).items()[0].contexts == (name,)
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **options: (tmp_path / "none").read_bytes())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no folder or file capitals or someone/things or things or main"):
        load_task(path, data_root=str(tmp_path / "empty")).items()


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load(name: str, subset: str, split: str, revision: str) -> Any:
        calls.append((name, subset, split, revision))
        return datasets.Dataset.from_list([{"q": f"{subset} {i}", "a": "x", "other": 1} for i in range(2)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = {**HUB, "subset": ["a", "b"], "revision": "v1"}
    assert [q for q, _ in asked(tmp_path, data)] == ["a 0", "a 1", "b 0", "b 1"]
    assert calls == [("someone/things", "a", "validation", "v1"), ("someone/things", "b", "validation", "v1")]
    with pytest.raises(
        UserError, match=r"data set someone/things \(a\), split validation has no field 'z' but 'q', 'a'"
    ):
        asked(tmp_path, data, context="{{ z }}")

    def fail(*given: Any, **options: Any) -> Any:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError) as caught:
        asked(tmp_path, data)
    assert str(caught.value) == (
        "task capitals: cannot open data set someone/things (a), split validation: no network; give files with --data"
        f" capitals=PATH, or a folder of data sets with --data-root (or {DATA_ROOT})"
    )


def test_bad_records_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"q": "x", "a": "y"}\n\n{"q": \n')
    with pytest.raises(UserError, match=rf"capitals\.yaml: {path}:3: not JSON .*; repair the file"):
        asked(tmp_path, {"files": ["data.jsonl"]})
    path.write_text('{"q": "x", "a": "y"}\n[1]\n')
    with pytest.raises(UserError, match=rf"{path}:2: no record \(it is list, not an object\); repair the file"):
        asked(tmp_path, {"files": ["data.jsonl"]})
    (tmp_path / "data.csv").write_text("q,a\n1,2\n1,2,3\n")
    with pytest.raises(UserError, match=r"data\.csv:3: malformed row \(3 fields where the header has 2\)"):
        asked(tmp_path, {"files": ["data.csv"]})
    (tmp_path / "data.csv").write_text("q,a,q\n1,2,3\n")
    with pytest.raises(UserError, match=r"data\.csv has 2 fields 'q'; rename all but one"):
        asked(tmp_path, {"files": ["data.csv"]})
    (tmp_path / "data.csv").write_text("question,a\n1,2\n")
    with pytest.raises(UserError, match=r"data\.csv has no field 'q' but 'question', 'a'; name one of them"):
        asked(tmp_path, {"files": ["data.csv"]})
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot read .*data\.parquet"):
        asked(tmp_path, {"files": ["data.parquet"]})


def test_values_keep_their_types(tmp_path: Path) -> None:
    """Lists and numbers of tables are what they are in JSON lines."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CAPITALS), tmp_path / "capitals.parquet")
    write_lines(tmp_path / "capitals.jsonl", CAPITALS)
    lines = load_task(write_task(tmp_path)).items()
    assert load_task(write_task(tmp_path, {"data": {"files": ["capitals.parquet"]}})).items() == lines
