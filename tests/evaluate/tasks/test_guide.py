"""The guide's example works as it stands there, and its tables name all keys there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmscale.evaluate.tasks import load_task, load_tasks
from llmscale.evaluate.tasks.kinds import kinds
from llmscale.evaluate.tasks.settings import FewShot, TaskData, TaskSettings

GUIDE = (Path(__file__).parents[3] / "docs/guide/tasks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.M | re.S)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    task, suite = blocks("yaml")
    (tmp_path / "capitals.jsonl").write_text(blocks("json")[0])
    (tmp_path / "capitals.yaml").write_text(task)
    (tmp_path / "geography.yaml").write_text(suite)
    return tmp_path


def test_the_example_asks_what_it_should(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("python")
    exec(code, {})
    said = capsys.readouterr().out
    assert said.endswith("Question: What is the capital of Norway?\nAnswer: (' Bergen', ' Oslo') (1,)\n")
    assert said.count("\n\nQuestion: ") == 3
    first = load_task("./capitals.yaml").items()[0]
    assert first.contexts == ("Question: What is the capital of France?\nAnswer:",)
    assert (first.answers, first.gold, first.neutral, first.group) == ((" Rome", " Paris"), (1,), "Answer:", "Europe")


def test_the_example_of_a_suite(example: Path) -> None:
    selection = load_tasks(["./geography.yaml"])
    assert [task.name for task in selection.tasks] == ["capitals", "boolq"]


def test_the_tables_have_every_key() -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    common = set(TaskSettings.model_fields)
    for name, kind in kinds().items():
        [row] = [line for line in rows if line.startswith(f"| `{name}` |")]
        for key in kind.model_fields.keys() - common - {"kind"}:
            assert f"`{key}`" in row, (name, key)
    for key in [*common, *TaskData.model_fields, *FewShot.model_fields]:
        assert any(f"`{key}`" in line for line in rows), key
