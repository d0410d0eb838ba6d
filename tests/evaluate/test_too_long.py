"""Items longer than the context: refused with what helps, or without the beginning of their context."""

import dataclasses
from pathlib import Path

import pytest
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.reading.reader import Reader
from llmscale.evaluate.placed import Placed, place_whole
from llmscale.evaluate.scorers import Length, Overflow, scorer_for
from llmscale.evaluate.scorers.rows import Request
from llmscale.evaluate.tasks import Task, load_tasks
from llmscale.generate.prompts import reading_of
from tests.evaluate.models import CONTEXT, write_checkpoint, write_tasks

CPU = torch.device("cpu")
WINDOW, ANY = "give --overflow window", "give --overflow truncate-left or window"


def request(placed: Placed, task: Task, context: str, answer: str, overflow: Overflow) -> Request:
    config = placed.config
    reader = Reader(placed.tokenizer, config.model.architecture, reading_of(config.objective))
    item = dataclasses.replace(task.items()[0], contexts=(context,), answers=(answer,))
    return scorer_for(config.model, config.objective)(reader, config.model, Length(overflow)).request(item)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_tasks([str(write_tasks(tmp_path / "tasks", items=2)["likelihood"])]).tasks[0]


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_a_long_context_is_refused_or_cut_from_the_left(family: str, task: Task, tmp_path: Path) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family)), CPU, torch.float32)
    context = "".join(chr(97 + place % 26) for place in range(CONTEXT + 40))
    with pytest.raises(UserError, match=f"^it has .* context is {CONTEXT}; {ANY}"):
        request(placed, task, context, " end", "refuse")
    kept = request(placed, task, context, " end", "truncate-left")
    (row,) = {len(each.source or each.inputs) for each in kept.rows}
    assert row == CONTEXT
    assert kept.flags == ["windowed"]
    ids = kept.rows[0].source or kept.rows[0].inputs
    special = set(placed.tokenizer.special.values())
    text = placed.tokenizer.decode([token for token in ids if token not in special])
    assert context[-100:] in text
    assert not text.startswith("abc")


@pytest.mark.parametrize(
    ("family", "overflow", "fix"),
    [
        ("gpt2", "truncate-left", WINDOW),
        ("bert", "refuse", "leave the item out, or take a model with a longer context"),
        ("bert", "window", "leave the item out, or take a model with a longer context"),
        ("t5", "window", "leave the item out, or take a model with a longer context"),
    ],
)
def test_an_answer_longer_than_the_context(
    family: str, overflow: Overflow, fix: str, task: Task, tmp_path: Path
) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family)), CPU, torch.float32)
    with pytest.raises(UserError, match=rf"^its answer alone has \d+ tokens, but .* context is {CONTEXT}; {fix}"):
        request(placed, task, "so", "x" * (CONTEXT + 9), overflow)
