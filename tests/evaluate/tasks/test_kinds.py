"""Every kind makes the items that its file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.reading.item import Item
from llmscale.evaluate.tasks import load_task
from llmscale.evaluate.tasks.kinds import kinds
from tests.evaluate.tasks.files import CAPITALS, write_capitals, write_lines, write_task


def items_of(folder: Path, records: list[dict[str, Any]], settings: dict[str, Any]) -> list[Item]:
    write_lines(folder / "data.jsonl", records)
    nothing = dict.fromkeys(("context", "answers", "gold"))
    return load_task(write_task(folder, nothing | {"data": {"files": ["data.jsonl"]}} | settings)).items()


def test_choice(tmp_path: Path) -> None:
    path = write_capitals(tmp_path, {"neutral": "It is", "group": "{{ topic }}", "cluster": "{{ q }}!"})
    assert load_task(path).items() == [
        Item(0, ("The capital of France is",), (" Rome", " Paris"), "It is", (1,), (), "France!", "west"),
        Item(1, ("The capital of Italy is",), (" Rome", " Paris", " Oslo"), "It is", (0,), (), "Italy!", "south"),
        Item(2, ("The capital of Norway is",), (" Bern", " Oslo"), "It is", (1,), (), "Norway!", "north"),
    ]


def test_answers_that_have_a_context_each(tmp_path: Path) -> None:
    """WinoGrande's partial evaluation: the same end after either name."""
    record = {"before": "X told Y that ", "names": ["X", "Y"], "after": " won.", "right": 0}
    changes = {
        "context": "{{ names | surround(before) }}",
        "answers": ["{{ after }}", "{{ after }}"],
        "gold": "{{ right }}",
    }
    [item] = items_of(tmp_path, [record], {"kind": "choice", "answer_prefix": "", **changes})
    assert item.contexts == ("X told Y that X", "X told Y that Y")
    assert item.answers == (" won.", " won.")
    assert item.context_of(1) == "X told Y that Y"


@pytest.mark.parametrize(
    ("settings", "value", "expected"),
    [
        ({}, 1, (1,)),
        ({}, "1", (1,)),
        ({}, " 1\n", (1,)),
        ({}, True, (1,)),
        ({}, [0, 2], (0, 2)),
        ({"gold": "{{ value | int - 1 }}"}, "1", (0,)),
        ({"gold": 2}, None, (2,)),
        ({"gold_as": "letter"}, "C", (2,)),
        ({"gold_as": "letter"}, "b", (1,)),
        ({"gold_as": "text"}, "maybe", (2,)),
        ({"gold_labels": {"entailment": 2, "neutral": 0}}, "entailment", (2,)),
        ({"gold_labels": {"-1": 0, "1": 1}}, -1, (0,)),
    ],
)
def test_right_answers_by_place_letter_text_or_name(
    settings: dict[str, Any], value: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    changes = {"kind": "choice", "context": "?", "answers": ["no", "yes", "maybe"], "gold": "{{ value }}", **settings}
    [item] = items_of(tmp_path, [{"value": value}], changes)
    assert item.gold == expected


def test_equal_answers_that_are_allowed_are_right_together_and_told(tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", [{"a": "x", "b": "x", "right": 1}, {"a": "x", "b": "y", "right": 1}])
    changes = {
        "context": "?",
        "answers": ["{{ a }}", "{{ b }}"],
        "equal_answers": "allow",
        "data": {"files": ["data.jsonl"]},
    }
    task = load_task(write_task(tmp_path, changes))
    assert [item.gold for item in task.items()] == [(1, 0), (1,)]
    assert task.warnings == ["warning: task capitals: 1 of 2 items of test have two equal answers"]


def test_likelihood(tmp_path: Path) -> None:
    changes = {
        "kind": "likelihood",
        "context": "{{ text.split(' ')[:-1] | join(' ') }}",
        "answer": "{{ text.split(' ')[-1] }}",
    }
    [item] = items_of(tmp_path, [{"text": "a b  c"}], changes)
    assert item == Item(0, ("a b ",), (" c",), gold=(0,))


def test_perplexity_counts_what_the_source_had(tmp_path: Path) -> None:
    changes = {
        "kind": "perplexity",
        "text": "{{ page.replace(' ü', 'ü') }}",
        "source_text": "{{ page }}",
        "group": "{{ d }}",
    }
    [item] = items_of(tmp_path, [{"page": "a ü\n b", "d": "web"}], changes)
    assert item == Item(0, answers=("aü\n b",), group="web", scored_bytes=7, scored_words=3)
    [plain] = items_of(tmp_path, [{"page": "a ü\n b"}], {"kind": "perplexity", "text": "{{ page }}"})
    assert plain == Item(0, answers=("a ü\n b",), scored_bytes=7, scored_words=3)


def test_minimal_pair(tmp_path: Path) -> None:
    changes = {"kind": "minimal_pair", "good": "{{ g }}", "bad": "{{ b }}"}
    [item] = items_of(tmp_path, [{"g": "他没有来。", "b": "他不有来。"}], changes)
    assert item == Item(0, answers=("他没有来。", "他不有来。"), gold=(0,))


def test_generate(tmp_path: Path) -> None:
    changes = {"kind": "generate", "context": "Q: {{ q }}\nA:", "references": "{{ a }}", "until": ["\n"], "samples": 3,
               "temperature": 0.5}  # fmt: skip
    [item, other] = items_of(tmp_path, [{"q": "1+1", "a": ["2", "two"]}, {"q": "2+2", "a": 4}], changes)
    assert item == Item(0, ("Q: 1+1\nA:",), references=("2", "two"))
    assert other.references == ("4",)


def test_classify_one_text_or_two(tmp_path: Path) -> None:
    changes = {
        "kind": "classify",
        "text": "{{ a }}",
        "second_text": "{{ b }}",
        "labels": ["no", "yes"],
        "gold": "{{ y }}",
    }
    [item] = items_of(tmp_path, [{"a": "x", "b": "z", "y": "1"}], changes)
    assert item == Item(0, ("x", "z"), gold=(1,))
    [single] = items_of(tmp_path, [{"a": "x", "b": "z", "y": "1"}], changes | {"second_text": None})
    assert single == Item(0, ("x",), gold=(1,))


def test_span(tmp_path: Path) -> None:
    changes = {
        "kind": "span",
        "question_text": "{{ q }}",
        "passage": "{{ p }}",
        "references": "{{ a }}",
        "unanswerable": True,
    }
    [item, none] = items_of(
        tmp_path, [{"q": "Who?", "p": "He did.", "a": ["He"]}, {"q": "?", "p": "x", "a": []}], changes
    )
    assert item == Item(0, ("Who?", "He did."), references=("He",))
    # What is found is compared with an empty text there, as SQuAD 2 has it.
    assert none.references == ("",)


def test_tag(tmp_path: Path) -> None:
    changes = {"kind": "tag", "words": "{{ w }}", "tags": "{{ t }}", "labels": ["O", "B-X"], "join": ""}
    [item] = items_of(tmp_path, [{"w": ["罗", "马"], "t": [1, "O"]}], changes)
    assert item == Item(0, ("罗马",), ("罗", "马"), references=("B-X", "O"))


def test_every_file_of_the_folder_is_a_kind_with_metrics() -> None:
    assert sorted(kinds()) == [
        "choice",
        "classify",
        "generate",
        "likelihood",
        "minimal_pair",
        "perplexity",
        "span",
        "tag",
    ]
    assert all(kind.DEFAULT_METRICS for kind in kinds().values())


def test_a_kind_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped into the folder, it is known; nothing else is told."""
    (tmp_path / "echo.py").write_text(
        "from typing import Literal\n"
        "from llmscale.evaluate.tasks.settings import Question, TaskSettings, text_of\n"
        "from llmscale.evaluate.tasks.templates import Template, Text\n"
        "class EchoTask(TaskSettings):\n"
        "    DEFAULT_METRICS = ('accuracy',)\n"
        "    kind: Literal['echo']\n"
        "    said: Text\n"
        "    def templates(self):\n        return [Template('said', self.said)]\n"
        "    def question(self, values):\n        return Question(answers=(text_of(values, 'said'),))\n"
    )
    from llmscale.evaluate.tasks import kinds as package

    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    kinds.cache_clear()
    try:
        [item] = items_of(tmp_path, [{"x": "hi"}], {"kind": "echo", "said": "{{ x }}{{ x }}"})
    finally:
        kinds.cache_clear()
    assert item.answers == ("hihi",)


def test_a_limit_takes_of_each_group_and_keeps_numbers(tmp_path: Path) -> None:
    records = [{**CAPITALS[0], "q": f"{topic}{i}", "topic": topic} for topic in "ab" for i in range(5)]
    write_lines(tmp_path / "capitals.jsonl", records)
    task = load_task(write_task(tmp_path, {"group": "{{ topic }}"}))
    everything = task.items()
    assert [item.number for item in task.items(limit=4)] == [0, 1, 5, 6]
    assert task.items(limit=3) == [everything[number] for number in (0, 1, 5)]
    assert task.items(limit=99) == everything


def test_the_digest_is_of_meaning_and_items(tmp_path: Path) -> None:
    first = load_task(write_capitals(tmp_path)).digest
    other = tmp_path / "other"
    other.mkdir()
    assert load_task(write_capitals(other, {"description": "x", "name": "y"})).digest == first
    assert load_task(write_capitals(other, {"overflow": "window"})).digest != first
    assert load_task(write_capitals(other, {"preamble": "Now."})).digest != first
    write_lines(tmp_path / "capitals.jsonl", [*CAPITALS[:2], {**CAPITALS[2], "right": 0}])
    assert load_task(str(tmp_path / "capitals.yaml")).digest != first


def test_fields_that_are_read(tmp_path: Path) -> None:
    changes = {"let": {"shown": "{{ q | upper }}"}, "context": "{{ shown }} {{ subset }}", "group": "{{ topic.x }}"}
    assert load_task(write_capitals(tmp_path, changes)).read_fields == ["options", "q", "right", "topic"]
