"""Scores on several ranks: the bytes of one process where no sum is cut, and close to them where one is."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from llmscale.distributed.process_group import join, leave, read_world
from llmscale.evaluate.artefact_files import load_records
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.placed import place_on_ranks, place_whole
from llmscale.evaluate.tasks import load_tasks
from tests.evaluate.models import write_checkpoint, write_tasks
from tests.evaluate.test_classify_task import write_checkpoint as write_head
from tests.evaluate.test_classify_task import write_task as write_labelled
from tests.evaluate.test_span_task import write_task as write_asked
from tests.evaluate.test_tag_task import LABELS as TAGS
from tests.evaluate.test_tag_task import write_task as write_names
from tests.ranks import run_ranks

BOUND = 2e-5
"""Nats a token, as the results say."""


def evaluate_on_rank(
    checkpoint: str, tasks: list[str], output: str, cases: list[tuple[str, tuple[str, ...]]], drawn: bool = False
) -> None:
    """Evaluate in several layouts, one after the other; `drawn`: each with batches and threads of its own."""
    world = read_world("cpu")
    join(world)
    for name, overrides in cases:
        tokens = random.Random(f"{name} {Path(checkpoint).name}").choice([100, 300, 1000]) if drawn else 300
        # Threads of several ranks stand in each other's way on few cores, most of all in small batches.
        torch.set_num_threads(2 if tokens == 1000 and world.size == 2 else 1)
        placed = place_on_ranks(checkpoint, overrides, world, "fp32")
        prepared = prepare(placed, load_tasks(tasks).tasks, Choices(output=Path(output, name), batch_tokens=tokens))
        run(prepared, lambda task, done, items: None)
        placed.close()
    leave()


def lines_of(folder: Path) -> dict[str, Path]:
    return {path.parent.name.split("-")[2]: path for path in folder.glob("*/items.jsonl")}


def interrupt(whole: Path, folder: Path, draw: random.Random) -> None:
    """Copy artefacts as a start that was killed in the middle of a line leaves them."""
    shutil.copytree(whole, folder)
    for lines in folder.glob("*/items.jsonl"):
        lines.write_bytes(lines.read_bytes()[: draw.randrange(lines.stat().st_size)])


EXACT: dict[int, list[tuple[str, tuple[str, ...]]]] = {
    2: [
        ("data", ()),
        ("zero1", ("engine.zero_stage=1",)),
        ("zero2", ("engine.zero_stage=2",)),
        ("zero3", ("engine.zero_stage=3",)),
        ("pipeline", ("parallel.pipeline=2",)),
        ("shared experts", ("parallel.expert=2", "engine.zero_stage=1")),
    ],
    3: [("three", ("engine.zero_stage=3",))],
    4: [("four", ("engine.zero_stage=1",)), ("pipeline and data", ("parallel.pipeline=2",))],
}
CUT = [("tensor", ("parallel.tensor=2",)), ("context", ("parallel.context=2",))]


def write_stars(folder: Path) -> str:
    return write_labelled(folder, ["bad", "good"])


def write_questions(folder: Path) -> str:
    return write_asked(folder, unanswerable=True, max_answer_length=6)


FAMILIES = ["gpt2", "llama", "bert", "t5", "experts"]
ILLEGAL = {
    "pipeline": ("t5", "experts"),
    "context": ("experts",),
    "shared experts": ("gpt2", "llama", "bert", "t5"),
}
"""Families whose models a layout cannot have."""


HEADS = {
    "classify": (write_stars, {"name": "classification", "labels": ["bad", "good"]}, {"label": "stars"}),
    "tag": (write_names, {"name": "token_classification", "labels": TAGS, "special_tokens": "cls"},
            {"tokens": "tokens", "tags": "tags"}),
    "span": (write_questions, {"name": "span", "special_tokens": "cls"}, {"question": "q", "answers": "a"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_fine_tuned_heads_give_the_same_bytes_in_any_layout(kind: str, tmp_path: Path) -> None:
    write, objective, fields = HEADS[kind]
    checkpoint = write_head(tmp_path, "bert", objective, fields)
    tasks = [write(tmp_path)]
    torch.set_num_threads(1)
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    run(prepare(placed, load_tasks(tasks).tasks, Choices(output=tmp_path / "one")), lambda task, done, items: None)
    [whole] = lines_of(tmp_path / "one").values()
    cases = [*EXACT[2][:4], ("tensor", ("parallel.tensor=2",))]
    run_ranks(2, evaluate_on_rank, str(checkpoint), tasks, str(tmp_path / "ranks"), cases)
    for name, _ in cases[:4]:
        [lines] = lines_of(tmp_path / "ranks" / name).values()
        assert lines.read_bytes() == whole.read_bytes(), name
    [lines] = lines_of(tmp_path / "ranks" / "tensor").values()
    for one, other in zip(load_records(whole), load_records(lines), strict=True):
        assert other.generated == one.generated
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_same_bytes_in_any_layout(family: str, tmp_path: Path) -> None:
    """Half of them go on with what one process began, and every one has batches and threads of its own."""
    checkpoint = write_checkpoint(tmp_path / family, family)
    tasks = [str(path) for path in write_tasks(tmp_path / "tasks", items=5).values()]
    torch.set_num_threads(1)
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    prepared = prepare(placed, load_tasks(tasks).tasks, Choices(output=tmp_path / "one"))
    run(prepared, lambda task, done, items: None)
    one = {name: path.read_bytes() for name, path in lines_of(tmp_path / "one").items()}
    assert len(one) == 3
    # What llmscale.layout refuses.
    illegal = [word for word, families in ILLEGAL.items() if family in families]
    for ranks, cases in EXACT.items():
        legal = [case for case in cases if not any(word in case[0] for word in illegal)]
        draw = random.Random(f"{family} {ranks}")
        for name, _ in legal[ranks % 2 :: 2]:
            interrupt(tmp_path / "one", tmp_path / "ranks" / name, draw)
        run_ranks(ranks, evaluate_on_rank, str(checkpoint), tasks, str(tmp_path / "ranks"), legal, True)
        for name, _ in legal:
            found = lines_of(tmp_path / "ranks" / name)
            assert {task: path.read_bytes() for task, path in found.items()} == one, name


WRITTEN: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "llama": [*EXACT[2][:1], *EXACT[2][3:5], *CUT],
    "t5": [*EXACT[2][:1], *EXACT[2][3:4], *CUT[:1]],
    "experts": [("experts", ("parallel.expert=2",)), *CUT[:1]],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITTEN)
def test_written_texts_are_the_same_bytes_in_any_layout(family: str, tmp_path: Path) -> None:
    """Samples, of which a last bit of a weight would change some."""
    checkpoint = write_checkpoint(tmp_path / "model", family)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"row {n} " * n, "a": "b"}) + "\n" for n in range(1, 7))
    )
    task = {"kind": "generate", "context": "{{ q }}", "references": ["{{ a }}"], "until": [], "max_new_tokens": 12}
    task |= {"data": {"files": ["rows.jsonl"]}, "temperature": 1.0, "samples": 3}
    (tmp_path / "write.yaml").write_text(yaml.safe_dump(task))
    tasks = [str(tmp_path / "write.yaml")]
    torch.set_num_threads(1)
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    run(prepare(placed, load_tasks(tasks).tasks, Choices(output=tmp_path / "one")), lambda task, done, items: None)
    run_ranks(2, evaluate_on_rank, str(checkpoint), tasks, str(tmp_path / "ranks"), WRITTEN[family])
    [whole] = lines_of(tmp_path / "one").values()
    for name, _ in WRITTEN[family]:
        [lines] = lines_of(tmp_path / "ranks" / name).values()
        assert lines.read_bytes() == whole.read_bytes(), name
        assert '"exactness": "exact"' in (lines.parent / "meta.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_cut_sums_are_close(family: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", family, init_std=0.1)
    tasks = [str(path) for path in write_tasks(tmp_path / "tasks", items=5).values()]
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    run(prepare(placed, load_tasks(tasks).tasks, Choices(output=tmp_path / "one")), lambda task, done, items: None)
    cases = [case for case in CUT if family not in ILLEGAL.get(case[0], ())]
    run_ranks(2, evaluate_on_rank, str(checkpoint), tasks, str(tmp_path / "ranks"), cases)
    for name, _ in cases:
        for task, path in lines_of(tmp_path / "one").items():
            whole, cut = load_records(path), load_records(lines_of(tmp_path / "ranks" / name)[task])
            assert [record.item for record in whole] == [record.item for record in cut]
            for wanted, found in zip(whole, cut, strict=True):
                for left, right in zip(wanted.answers, found.answers, strict=True):
                    assert right.log_probabilities == pytest.approx(left.log_probabilities, abs=BOUND)


def test_two_ranks_give_the_bytes_of_one(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", "llama")
    tasks = [str(write_tasks(tmp_path / "tasks", items=5)["choice"])]
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    run(prepare(placed, load_tasks(tasks).tasks, Choices(output=tmp_path / "one")), lambda task, done, items: None)
    run_ranks(2, evaluate_on_rank, str(checkpoint), tasks, str(tmp_path / "ranks"), EXACT[2][:1])
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "ranks" / "data")
    assert two["choice"].read_bytes() == one["choice"].read_bytes()
