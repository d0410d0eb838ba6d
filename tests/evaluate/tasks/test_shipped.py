"""Every task that is shipped is valid, states its fields, and makes the items that it should."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.reading.item import Item
from llmscale.evaluate.tasks import available_tasks, load_task, load_tasks
from llmscale.evaluate.tasks.files import SHIPPED
from tests.evaluate.tasks.files import CAPITALS, write_lines, write_task

ROOT = Path(__file__).resolve().parents[3]
LISTED = {listed.name: listed for listed in available_tasks()}
TASKS = sorted(name for name, listed in LISTED.items() if listed.kind != "suite")
SQUAD = {
    "id": "1",
    "title": "罗马",
    "context": "罗马很古老。",
    "question": "什么很古老？",
    "answers": [{"text": "罗马"}] * 2,
}
PAIR = {"sentence1": "能还款吗", "sentence2": "可以还款吗", "label": "1"}
MADE: dict[str, tuple[dict[str, Any], Item]] = {
    "cmrc2018": (
        SQUAD,
        Item(0, ("阅读：罗马很古老。\n问题：什么很古老？\n答案：",), references=("罗马",)),
    ),
    "cmrc2018_span": (
        SQUAD,
        Item(0, ("什么很古老？", "罗马很古老。"), references=("罗马",)),
    ),
    "squad_span": (
        {**SQUAD, "answers": {"text": ["罗马", "很古老"], "answer_start": [0, 2]}},
        Item(0, ("什么很古老？", "罗马很古老。"), references=("罗马", "很古老")),
    ),
    "conll2003_tag": (
        {"id": "1", "tokens": ["Li", "left"], "pos_tags": [], "chunk_tags": [], "ner_tags": [1, 0]},
        Item(0, ("Li left",), ("Li", "left"), references=("B-PER", "O")),
    ),
    "msra_ner_tag": (
        {"id": "1", "tokens": ["罗", "马"], "ner_tags": [5, 6]},
        Item(0, ("罗马",), ("罗", "马"), references=("B-LOC", "I-LOC")),
    ),
    "chnsenticorp": (
        {"text": "房间很小", "label": 0},
        Item(0, ("评论：房间很小\n这条评论的情感是",), ("负面", "正面"), "这条评论的情感是", (0,)),
    ),
    "chnsenticorp_classify": ({"text": "房间很小", "label": "0"}, Item(0, ("房间很小",), gold=(0,))),
    "sst2_classify": ({"sentence": "it 's fun", "label": 1}, Item(0, ("it 's fun",), gold=(1,))),
    "csl_title": (
        {"task": "to title", "abstract": "本文研究水。", "title": "水"},
        Item(0, ("摘要：本文研究水。\n标题：",), references=("水",)),
    ),
    "csl": (
        {"id": 1, "abst": "本文研究水。", "keyword": ["水", "火"], "label": "0"},
        Item(
            0,
            ("摘要：本文研究水。\n关键词：水，火\n问题：上述关键词是否全部属于该摘要？\n答案：",),
            ("否", "是"),
            "答案：",
            (0,),
        ),
    ),
    "afqmc": (
        PAIR,
        Item(
            0,
            ("句子一：能还款吗\n句子二：可以还款吗\n两个句子的意思",),
            ("不同", "相同"),
            "两个句子的意思",
            (1,),
        ),
    ),
    "afqmc_classify": (PAIR, Item(0, ("能还款吗", "可以还款吗"), gold=(1,))),
    "chid": (
        {"id": 1, "candidates": ["画蛇添足", "守株待兔"], "content": "他总是#idiom#，不做事。", "answer": 1},
        Item(0, ("他总是画蛇添足", "他总是守株待兔"), ("，不做事。", "，不做事。"), gold=(1,)),
    ),
    "multi30k_de_en": (
        {"de": "Ein Hund.", "en": "A dog."},
        Item(0, ("German: Ein Hund.\nEnglish:",), references=("A dog.",)),
    ),
    "scitldr": (
        {"source": ["We do.", "It works."], "target": ["It works.", "Done."]},
        Item(0, ("We do. It works.\n\nTL;DR:",), references=("It works.", "Done.")),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_states_its_fields_and_what_it_is(name: str) -> None:
    task = load_task(name)
    listed = LISTED[name]
    assert set(task.read_fields) <= set(task.settings.data.fields)
    assert listed.description
    assert "\n" not in listed.description
    assert task.kind == listed.kind
    assert task.name == name
    assert (task.settings.data.hub is None) == (task.settings.data.home is not None)


def test_the_tasks_that_are_promised_are_there() -> None:
    english = """arc_easy arc_challenge hellaswag piqa winogrande openbookqa boolq sciq copa commonsense_qa social_iqa
        lambada
        mmlu triviaqa squad gsm8k blimp wikitext sst2 multi30k_de_en scitldr"""
    chinese = "ceval cmmlu cmrc2018 chnsenticorp csl csl_title afqmc xnli_zh chid zhoblimp"
    assert set(english.split()) | set(chinese.split()) <= set(TASKS)
    assert {LISTED[name].language for name in chinese.split()} == {"zh"}


@pytest.mark.parametrize("name", MADE)
def test_tasks_that_lm_eval_does_not_have(name: str, tmp_path: Path) -> None:
    record, expected = MADE[name]
    path = write_lines(tmp_path / "data.jsonl", [record])
    [item] = load_task(name, str(path)).items()
    assert dataclasses.replace(item, cluster=None) == expected


@pytest.mark.parametrize("name", sorted(LISTED.keys() - set(TASKS)))
def test_every_suite_names_tasks_that_are_there(name: str) -> None:
    selection = load_tasks([name])
    [suite] = selection.suites
    assert [task.name for task in selection.tasks] == list(suite.tasks)
    assert len(suite.tasks) >= 2


def test_suites_of_suites_and_tasks_beside_them(tmp_path: Path) -> None:
    write_lines(tmp_path / "capitals.jsonl", CAPITALS)
    write_task(tmp_path)
    (tmp_path / "inner.yaml").write_text("suite: inner\ntasks: [./capitals.yaml, piqa]\n")
    (tmp_path / "outer.yaml").write_text("suite: outer\ndescription: x\ntasks: [sciq, ./inner.yaml, piqa]\n")
    selection = load_tasks([str(tmp_path / "outer.yaml"), "lambada", "sciq"], [f"piqa={tmp_path}/x", "piqa:train=y"])
    assert [task.name for task in selection.tasks] == ["sciq", "capitals", "piqa", "lambada"]
    assert [(suite.name, suite.tasks) for suite in selection.suites] == [("outer", ("sciq", "capitals", "piqa"))]
    assert len(selection.tasks[1].items()) == 3
    (tmp_path / "inner.yaml").write_text("suite: inner\ntasks: [./outer.yaml]\n")
    with pytest.raises(UserError, match="suite outer contains itself; leave it out of tasks"):
        load_tasks([str(tmp_path / "outer.yaml")])
    other = tmp_path / "other"
    other.mkdir()
    write_task(other)
    with pytest.raises(UserError, match="are both called capitals; give one another name"):
        load_tasks([str(tmp_path / "capitals.yaml"), str(other / "capitals.yaml")])


@pytest.mark.slow
def test_an_installed_wheel_has_the_tasks(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if not name.startswith(("tests/", "docs/", "benchmarks/")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (clone / name).symlink_to(os.readlink(ROOT / name))
            else:
                (clone / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=clone, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = """import json, llmscale.evaluate.tasks as tasks
print(json.dumps([tasks.__file__, [listed.name for listed in tasks.available_tasks()]]))"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    file, found = json.loads(result.stdout)
    assert file.startswith(str(tmp_path / "installed"))
    assert found == sorted(LISTED)
    assert len(found) == len(list(SHIPPED.glob("*.yaml")))
