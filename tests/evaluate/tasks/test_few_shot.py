"""Examples stand before the question, with their answers, from where the file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate.tasks import load_task
from tests.evaluate.tasks.files import CAPITALS, write_capitals, write_lines, write_task

SENTENCES = {
    "The capital of France is Paris",
    "The capital of Italy is Rome",
    "The capital of Norway is Oslo",
}


def test_examples_of_the_tasks_own_data_are_all_others(tmp_path: Path) -> None:
    task = load_task(
        write_capitals(tmp_path, {"preamble": "Geography.\n", "few_shot": {"separator": "\n---\n", "count": 2}})
    )
    for item, record in zip(task.items(), CAPITALS, strict=True):
        begin, *shown, last = item.contexts[0].removeprefix("Geography.\n").split("\n---\n")
        assert last == f"The capital of {record['q']} is"
        assert {begin, *shown} == {sentence for sentence in SENTENCES if record["q"] not in sentence}
    assert task.items(few_shot=0)[0].contexts == ("Geography.\nThe capital of France is",)


def test_an_item_is_shown_the_same_whatever_else_is_evaluated(tmp_path: Path) -> None:
    path = write_capitals(tmp_path)
    everything = load_task(path).items(few_shot=1, seed=3)
    assert load_task(path).items(limit=2, few_shot=1, seed=3) == everything[:2]
    drawn = {load_task(path).items(few_shot=1, seed=seed)[0].contexts for seed in range(20)}
    assert len(drawn) == 2


def test_the_same_question_in_other_letters_is_not_shown(tmp_path: Path) -> None:
    pool = [{**CAPITALS[0], "q": " FRANCE "}, *CAPITALS[1:]]
    write_lines(tmp_path / "pool.jsonl", pool)
    task = load_task(write_capitals(tmp_path, {"few_shot": {"files": ["pool.jsonl"]}}))
    assert "FRANCE" not in task.items(few_shot=2)[0].contexts[0]
    with pytest.raises(UserError, match="has 2 examples"):
        task.items(few_shot=3)


def test_fixed_examples_are_the_first_of_another_split_and_of_the_subject(tmp_path: Path) -> None:
    dev = [
        {**CAPITALS[1], "topic": topic, "q": f"{topic}{i}"} for i in range(3) for topic in ("west", "south", "north")
    ]
    write_lines(tmp_path / "dev.jsonl", dev)
    write_lines(tmp_path / "test.jsonl", CAPITALS)
    changes = {
        "data": {"hub": "someone/capitals", "fields": list(CAPITALS[0])},
        "group": "{{ topic }}",
        "few_shot": {"split": "dev", "fixed": True, "within_group": True},
    }
    items = load_task(write_task(tmp_path, changes), str(tmp_path)).items(few_shot=2)
    assert items[0].contexts[0] == (
        "The capital of west0 is Rome\n\nThe capital of west1 is Rome\n\nThe capital of France is"
    )
    assert "south0 is Rome\n\nThe capital of south1 is Rome" in items[1].contexts[0]


def test_examples_stand_before_the_context_of_each_answer(tmp_path: Path) -> None:
    changes = {"context": ["{{ q }}: {{ options[0] }}", "{{ q }}: {{ options[1] }}"], "answers": [".", "."],
               "answer_prefix": ""}  # fmt: skip
    write_lines(tmp_path / "capitals.jsonl", [CAPITALS[0], CAPITALS[2]])
    [item, _] = load_task(write_task(tmp_path, changes)).items(few_shot=1)
    assert item.contexts == ("Norway: Oslo.\n\nFrance: Rome", "Norway: Oslo.\n\nFrance: Paris")


def test_a_written_answer_may_be_shown_in_full(tmp_path: Path) -> None:
    """GSM8K: the reference is the number, examples show the steps."""
    changes = {"kind": "generate", "answers": None, "gold": None, "references": ["{{ right }}"],
               "example": "It is {{ right }}."}  # fmt: skip
    items = load_task(write_capitals(tmp_path, changes)).items(few_shot=2)
    assert items[2].references == ("1",)
    assert "The capital of France is It is 1.\n\n" in items[2].contexts[0]
