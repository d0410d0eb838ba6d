"""What is wrong with a task file or its data is one sentence with file, line or record, value and fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate.tasks import load_task, load_tasks
from tests.evaluate.tasks.files import CAPITALS, write_capitals, write_lines, write_task

CLASSIFY = {"kind": "classify", "context": None, "answers": None, "text": "{{ q }}", "labels": ["a", "b"]}
GENERATE = {"kind": "generate", "answers": None, "gold": None, "references": "{{ options }}"}
SPAN = {
    "kind": "span",
    "context": None,
    "answers": None,
    "gold": None,
    "question_text": "{{ q }}",
    "passage": "{{ q }}",
    "references": "{{ options }}",
}
PERPLEXITY = {"kind": "perplexity", "context": None, "answers": None, "gold": None, "text": "{{ q }}"}
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"contxt": "x"}, "capitals.yaml:9: unknown key 'contxt'; did you mean 'context'?"),
    "unknown key within": (
        {"data": {"files": ["a"], "splt": "x"}},
        "capitals.yaml:6: unknown key 'data.splt'; did you mean 'data.split'?",
    ),
    "key of another kind": (
        {"until": ["x"]},
        "unknown key 'until'; 'the top level' knows answer_prefix, answers, cluster, context, data",
    ),
    "unknown kind": (
        {"kind": "choise"},
        "capitals.yaml:1: 'kind' is 'choise', which is not known; did you mean 'choice'?",
    ),
    "kind that is no text": ({"kind": 3}, "'kind' is 3, which is not known; use one of choice, classify, generate"),
    "no kind": ({"kind": None}, "'kind' is missing; use one of choice, classify, generate, likelihood"),
    "no data": ({"data": None}, "'data' is missing; add it"),
    "data that are nowhere": (
        {"data": {"split": "x"}},
        "data: it names no data; give one of hub, files, parallel and home",
    ),
    "subset of no data set": (
        {"data": {"files": ["a"], "subset": "x"}},
        "subset is 'x', but hub is not given; name the",
    ),
    "both kinds of files": (
        {"data": {"files": ["a"], "parallel": {"x": "b"}}},
        "files and parallel are both given; name one",
    ),
    "unknown encoding": ({"data": {"files": ["a"], "encoding": "utf-99"}}, "encoding"),
    "pattern": ({"data": {"files": ["a"], "begins": "("}}, "'(' is no regular expression (missing ), unterminated"),
    "truth values for answers": (
        {"answers": [False, True]},
        "answers: number 0 of the list is False, but a text is needed; put it in quotes",
    ),
    "no answers": ({"answers": []}, "answers"),
    "template": (
        {"context": "{{ q"},
        "capitals.yaml:6: context: '{{ q' is no valid template (unexpected end of template",
    ),
    "filter": (
        {"context": "{{ q | shout }}"},
        "has the filter 'shout', which is not known; did you mean 'sort'?",
    ),
    "field that is not stated": (
        {"data": {"files": ["a"], "fields": ["question", "options", "right"]}},
        "context names 'q', but data.fields are question, options, right; name one of them, or add it to data.fields",
    ),
    "value's name": ({"let": {"a-b": "x"}}, "let: 'a-b' is no name for a value; use letters, digits and underscores"),
    "overflow": (
        {"overflow": "cut"},
        "'overflow' is 'cut', which is not known; use one of 'refuse', 'window', 'truncate-left'",
    ),
    "metric twice": ({"metrics": ["accuracy", "accuracy"]}, "metrics: 'accuracy' is there 2 times; name it once"),
    "unknown metric": (
        {"metrics": ["accuracy", "acuracy"]},
        "capitals.yaml:11: there is no metric 'acuracy'; those",
    ),
    "metric of another kind": ({"metrics": ["bleu"]}, "metric bleu does not fit tasks of kind choice; these do: acc"),
    "metric's option": ({"metrics": ["f1:lang=zh"], **GENERATE}, "metric f1 has no option lang; its options are"),
    "few-shot": ({"few_shot": {"count": -1}}, "'few_shot.count' is -1, but it must be greater than or equal to 0"),
    "examples of a kind without": (
        {**PERPLEXITY, "few_shot": {"count": 2}},
        "few_shot.count is 2, but this kind has no examples; leave it out",
    ),
    "label twice": ({**CLASSIFY, "labels": ["a", "a"]}, "labels: 'a' is there 2 times; name it once"),
    "stride": (
        {**PERPLEXITY, "window": 8, "stride": 9},
        "stride is 9, but window is 8, so that tokens between windows",
    ),
    "separator": ({**PERPLEXITY, "separator": "x"}, "separator is 'x', but documents is separate; make it joined"),
    "preamble of joined texts": (
        {**PERPLEXITY, "documents": "joined", "preamble": "x"},
        "documents is joined, but preamble would stand before each text; leave it out",
    ),
    "samples": ({**GENERATE, "samples": 4}, "samples is 4, but temperature is 0, so that all would be the same; raise"),
    "empty end": ({**GENERATE, "until": [""]}, "until: it has an empty text, which would end every answer at once"),
    "window for an answer": (
        {**GENERATE, "overflow": "window"},
        "overflow is window, but an answer is written after one",
    ),
}
RECORDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "missing field": (
        {"context": "{{ country }}"},
        CAPITALS,
        "capitals.yaml: template context names 'country', but record 1 of FOLDER/capitals.jsonl has no such field, only"
        " 'q', 'options', 'right', 'topic'; name one of them, or correct the data",
    ),
    "field of one record only": (
        {},
        [*CAPITALS[:2], {"options": ["a", "b"], "right": 0}],
        "capitals.yaml: template context names 'q', but record 3 of FOLDER/capitals.jsonl has no such field, only"
        " 'options', 'right'; name one of them, or correct the data",
    ),
    "field within a field": (
        {"context": "{{ q.name }}"},
        CAPITALS,
        "record 1 of FOLDER/capitals.jsonl: template context refuses the record: 'str object' has no attribute 'name'",
    ),
    "null": (
        {},
        [{**CAPITALS[0], "q": None}],
        "record 1 of FOLDER/capitals.jsonl: template context refuses the record: a text is made of null",
    ),
    "list for a text": ({"context": "{{ options }} is"}, CAPITALS, "refuses the record: a text is made of a list"),
    "object for a text": (
        {"neutral": "{{ {} }}"},
        CAPITALS,
        "refuses the record: a text is made of an object; change it",
    ),
    "answers that are an object": ({"answers": "{{ {1: 2} }}"}, CAPITALS, "answers is an object, but a text is needed"),
    "gold behind the answers": (
        {},
        [{**CAPITALS[0], "right": 2}],
        "record 1 of FOLDER/capitals.jsonl: gold is 2, which is place 2, but there are 2 answers, 0 to 1; correct"
        " the data, or gold",
    ),
    "gold before them": (
        {},
        [{**CAPITALS[0], "right": -1}],
        "gold is -1, which is place -1, but there are 2 answers, 0 to 1",
    ),
    "gold that is no number": (
        {},
        [{**CAPITALS[0], "right": "B"}],
        "gold is 'B', but gold_as is index, a number from 0",
    ),
    "gold that is no letter": (
        {"gold_as": "letter"},
        CAPITALS,
        "gold is 1, but gold_as is letter, A to Z; correct the data",
    ),
    "gold that is no answer": (
        {"gold_as": "text", "gold": "{{ q }}"},
        CAPITALS,
        "gold is 'France', which is none of the answers ['Rome', 'Paris']; correct the data, or gold",
    ),
    "gold without a label": (
        {"gold_labels": {"0": 0}},
        CAPITALS,
        "gold is 1, but gold_labels are 0; add it, or correct the",
    ),
    "no gold": ({"gold": "{{ [] }}"}, CAPITALS, "gold is an empty list; leave the record out, or correct gold"),
    "no answers": (
        {},
        [{**CAPITALS[0], "options": []}],
        "the list of answers is empty; leave the record out, or correct",
    ),
    "equal answers": (
        {},
        [CAPITALS[0], {**CAPITALS[1], "options": ["Rome", "Oslo", "Rome"]}],
        "record 2 of FOLDER/capitals.jsonl: answers 0 and 2 are both 'Rome'; make them different, or leave the record",
    ),
    "contexts": (
        {"context": ["a", "b", "c"]},
        CAPITALS,
        "there are 3 contexts for 2 answers; give one, or one for each answer",
    ),
    "no records": ({}, [], "capitals.yaml: FOLDER/capitals.jsonl has no record; give data that have some"),
    "no references": (GENERATE, [{"q": "x", "options": []}], "the list of references is empty; leave the record out"),
    "span outside the passage": (SPAN, CAPITALS, "reference 'Rome' does not stand in the passage; correct the data"),
    "no span": (SPAN, [{"q": "x", "options": []}], "the list of references is empty"),
    "empty text": (
        PERPLEXITY,
        [{"q": " \n"}],
        "record 1 of FOLDER/capitals.jsonl: text is empty; leave the record out",
    ),
    "division": (
        {"context": "{{ 1 // (right - 1) }}"},
        CAPITALS,
        "template context fails on the record: ZeroDivisionError",
    ),
    "equal pair": (
        {"kind": "minimal_pair", "context": None, "answers": None, "gold": None, "good": "{{ q }}", "bad": "{{ q }}"},
        CAPITALS,
        "answers 0 and 1 are both 'France'; make them different",
    ),
}


def complaint(do: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", FILES)
def test_a_task_file_that_is_not_valid(name: str, tmp_path: Path) -> None:
    changes, expected = FILES[name]
    said = complaint(lambda: load_task(write_task(tmp_path, changes)))
    assert expected in said
    assert said.startswith(f"{tmp_path}/capitals.yaml")


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_makes_no_item(name: str, tmp_path: Path) -> None:
    changes, records, expected = RECORDS[name]
    write_lines(tmp_path / "capitals.jsonl", records)
    said = complaint(load_task(write_task(tmp_path, changes)).items)
    assert expected.replace("FOLDER", str(tmp_path)) in said
    assert said.startswith(f"{tmp_path}/capitals.yaml: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: choice\nlanguage: en\nkind: span\n", "line 3, column 1: the key 'kind' is there twice; keep one"),
        ("kind: choice\ndata: {hub: a, hub: b}\n", "line 2, column 16: the key 'hub' is there twice; keep one"),
        ("kind: choice\n? [a, b]\n: x\n", "task.yaml"),
        ("- kind: choice\n", "must hold sections such as 'kind:' and 'data:', but holds list"),
        ("kind: [\n", "is not valid YAML at line 2"),
        ("kind: !!python/object/apply:os.system [echo]\n", "is not valid YAML at line 1"),
        ("suite: s\ntasks: []\n", "tasks"),
        ("suite: s\ntasks: [a]\nmean: macro\n", ":3: unknown key 'mean'"),
    ],
)
def test_yaml_that_is_no_task(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    assert expected in complaint(lambda: load_task(str(path)))


def test_tasks_that_are_not_there(tmp_path: Path) -> None:
    assert "no task 'hellswag': did you mean hellaswag" in complaint(lambda: load_task("hellswag"))
    assert "a file of yours is given by its path, such as ./zzz.yaml" in complaint(lambda: load_task("zzz"))
    assert f"no task file {tmp_path}/x.yaml" in complaint(lambda: load_task(f"{tmp_path}/x.yaml"))
    assert "english is a suite of 13 tasks" in complaint(lambda: load_task("english"))


def test_data_that_are_not_there(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    assert f"no file matches {tmp_path}/capitals.jsonl" in complaint(load_task(path).items)
    assert "no file matches" in complaint(load_task("piqa", str(tmp_path / "none.jsonl")).items)
    home = load_task("csl_title").items
    assert "task csl_title needs the data of https://github.com/ydli-ai/CSL" in complaint(home)


def test_too_few_examples(tmp_path: Path) -> None:
    path = write_capitals(tmp_path)
    assert complaint(lambda: load_task(path).items(few_shot=3)) == (
        "few-shot is 3, but the pool of task capitals has 2 examples that are not record 1 of"
        f" {tmp_path}/capitals.jsonl itself; ask for 2 or fewer, or give a larger pool"
    )
    path = write_capitals(tmp_path, {"group": "{{ topic }}", "few_shot": {"within_group": True, "fixed": True}})
    assert "the pool of task capitals has 0 examples of group 'west'" in complaint(
        lambda: load_task(path).items(few_shot=1)
    )
    pairs = {"kind": "minimal_pair", "context": "", "answers": None, "gold": None, "good": "a", "bad": "b"}
    said = complaint(lambda: load_task(write_capitals(tmp_path, pairs)).items(few_shot=1))
    assert said == "few-shot is 1, but task capitals is of kind minimal_pair, which shows no examples; give 0"


def test_other_options(tmp_path: Path) -> None:
    path = write_capitals(tmp_path)
    assert "limit is 0, but an evaluation needs an item; give 1 or more" in complaint(
        lambda: load_task(path).items(limit=0)
    )
    for option in ("sciq", "sciq=", "=x", "sciq:=x"):
        assert f"--data {option!r} is not of the form task=path" in complaint(
            lambda o=option: load_tasks(["sciq"], [o])
        )
    assert "--data names piqa, but the tasks are sciq" in complaint(lambda: load_tasks(["sciq"], ["piqa=x"]))
    assert "--data gives sciq both x and y" in complaint(lambda: load_tasks(["sciq"], ["sciq=x", "sciq=y"]))
    assert "is no folder" in complaint(load_task("sciq", data_root=path).items)
