"""Planted items are found in what a run was trained on, at the steps that saw them, and nothing else is."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from data_pipeline.ledger import LedgerWriter, replay
from data_pipeline.loader import TrainLoader
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from llmscale.checkpoint.members import recorded_config
from llmscale.cli import cli
from llmscale.config import parse_config
from llmscale.evaluate.contamination.run import Asked, TrainedOn
from llmscale.evaluate.contamination.texts import texts_of
from tests.data_pipeline.corpora import bytes_tokenizer, write_jsonl
from tests.train import forked

BATCH = 8
CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少明月光疑是地上霜举头望低思故乡白日依山尽黄河入海流欲穷"


def words(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 8))) for _ in range(count)]


def item(number: int, question: str, answer: str) -> Item:
    return Item(number, (question,), (" " + answer, " no"), gold=(0,))


def planted(draw: random.Random, number: int) -> tuple[Item, str, str]:
    """An item, and its question and answer as they stand in a document: with other case, spaces and punctuation."""
    if number % 4 == 3:
        question, answer = "".join(draw.choices(CHINESE, k=draw.randint(9, 30))), "".join(draw.choices(CHINESE, k=2))
        return item(number, question + "？", answer), f"“{question[:4]}，\r\n{question[4:]}”😀", f"：{answer}"
    terms, right = words(draw, draw.choice([5, 9, 13, 14, 25, 40])), words(draw, 2)
    asked = item(number, " ".join(terms) + "?", " ".join(right))
    return asked, "  ".join(terms).upper().replace("A", "Ａ") + "?!", "-- " + ", ".join(right).title()


def make_run(run: Path, documents: list[str], steps: int, **settings: Any) -> dict[str, Any]:
    """The ledger of a run, without a model; returns its config."""
    data = {
        "sources": [write_jsonl(run.with_name(f"{run.name}-data"), documents)],
        "tokenizer": {"kind": "bytes"},
        **{"sequence_length": 48, "lanes": 4, "span_bytes": 1000, "shuffle_buffer": 32, "workers": 0, **settings},
    }
    raw = {"run": {"directory": str(run)}, "data": data, "model": {"layers": 1, "hidden_size": 16, "heads": 2}}
    config = parse_config({**raw, "train": {"steps": steps, "global_batch": BATCH, "micro_batch": BATCH}})
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    ledger = LedgerWriter(run, 0)
    tokenizer = load_tokenizer(bytes_tokenizer(run))
    ranks = {"dp_rank": 0, "dp_size": 1, "first_sample": 0}
    with TrainLoader(config.data, tokenizer, seed=config.run.seed, **ranks, cache=run / "cache") as loader:
        for step in range(1, steps + 1):
            _, total = loader.take(BATCH)
            ledger.write(step, (step - 1) * BATCH, step * BATCH - 1, total)
            if step % 5 == 0:
                ledger.snapshot(loader.cursor())
    ledger.close()
    return {"data": config.data, "seed": config.run.seed}


def steps_of_bytes(run: Path, config: dict[str, Any], steps: int) -> dict[tuple[str, int], dict[int, list[int]]]:
    """By document and byte, the steps that saw it, by a replay of each step alone."""
    seen: dict[tuple[str, int], dict[int, list[int]]] = {}
    tokenizer = load_tokenizer(run / "tokenizer")
    for step in range(1, steps + 1):
        pieces = replay(run, config["data"], tokenizer, seed=config["seed"], step=step, cache=run / "cache")
        for piece in pieces:
            path, position, first = piece.origin
            own = seen.setdefault((path, position), {})
            for byte in range(first, first + len(piece.tokens)):
                if step not in own.setdefault(byte, []):
                    own[byte].append(step)
    return seen


def where(seen: dict[tuple[str, int], dict[int, list[int]]], text: str) -> tuple[set[int], int | None]:
    """The steps that saw some of a text, and the step that had seen all of it first; None where it was never whole."""
    for (path, position), by_byte in seen.items():
        document = json.loads(Path(path).read_bytes()[position:].split(b"\n")[0])["text"].encode()
        start = document.find(text.encode())
        if start >= 0:
            steps = [by_byte.get(byte, []) for byte in range(start, start + len(text.encode()))]
            whole = max(each[0] for each in steps) if all(steps) else None
            return {step for each in steps for step in each}, whole
    return set(), None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "finite"},
        {"sequence_length": 512, "lanes": 2, "shuffle_buffer": 0},
        {"sequence_length": 256, "order": "finite"},
    ],
    ids=["stream", "finite", "long", "long finite"],
)
def test_planted_items_are_found_at_the_steps_that_saw_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    draw = random.Random(3)
    marks = [planted(draw, number) for number in range(20)]
    others = [planted(draw, number)[0] for number in range(20, 60)]
    documents = [" ".join(words(draw, draw.randint(5, 60))) for _ in range(150)]
    for number, (_, question, answer) in enumerate(marks):
        front, back = " ".join(words(draw, draw.randint(0, 40))), " ".join(words(draw, 20))
        documents.insert(7 * number, f"{front} {question} {answer if number < 10 else ''} {back}")
    size = sum(len(text.encode()) + 1 for text in documents)
    steps = -(-size // (BATCH * settings.get("sequence_length", 48)))
    run = tmp_path / "run"
    config = make_run(run, documents, steps, **settings)
    asked = [mark[0] for mark in marks] + others
    (found,) = TrainedOn(run).look_for([Asked(asked)])
    assert (found.controls_found, found.controls, found.steps) == (0, 500, steps)
    seen = steps_of_bytes(run, config, steps)
    by_number = found.by_number
    answered = 0
    for number, (_, question, answer) in enumerate(marks):
        text = f"{question} {answer}".lstrip("“")
        some, whole = where(seen, question.strip("“”😀?! "))  # its words alone
        if whole is None:  # lanes end at different places, so that one epoch's steps leave some text out
            continue
        assert whole in by_number[number].question
        assert set(by_number[number].question) <= some
        if len(some) == 1:
            assert set(by_number[number].question) == some
        both = where(seen, text)[1] if number < 10 else None
        # Some of a finite set's windows are seen in another order, so that half of the question may come late.
        assert both in by_number[number].both if both else by_number[number].both == []
        answered += both is not None
    assert answered >= 8
    assert len(by_number) >= 18
    assert not {number for number in by_number if number >= 20}
    assert not [number for number in range(10, 20) if number in by_number and by_number[number].answered]


def test_a_second_epoch_sees_everything_again(tmp_path: Path) -> None:
    draw = random.Random(5)
    mark, question, answer = planted(draw, 0)
    documents = [" ".join(words(draw, 30)) for _ in range(20)]
    documents.insert(5, f"{question} {answer}")
    size = sum(len(text.encode()) + 1 for text in documents)
    steps = 3 * -(-size // (BATCH * 512)) + 2
    run = tmp_path / "run"
    config = make_run(run, documents, steps, sequence_length=512, order="finite")
    (found,) = TrainedOn(run).look_for([Asked([mark])])
    some, _ = where(steps_of_bytes(run, config, steps), f"{question} {answer}")
    assert len(some) >= 3
    assert set(found.items[0].question) == some
    assert found.items[0].last == max(some)


def test_steps_up_to_a_checkpoint(tmp_path: Path) -> None:
    draw = random.Random(5)
    mark, question, answer = planted(draw, 0)
    documents = [" ".join(words(draw, 30)) for _ in range(60)]
    documents.insert(40, f"{question} {answer}")
    run = tmp_path / "run"
    make_run(run, documents, 30)
    (found,) = TrainedOn(run).look_for([Asked([mark])])
    first, last = found.items[0].question[0], found.items[0].last
    assert TrainedOn(run, last).look_for([Asked([mark])])[0].items[0].last == last
    assert TrainedOn(run, first - 1).look_for([Asked([mark])])[0].items == []
    with pytest.raises(UserError, match="ends at step 30, but the checkpoint is of step 31"):
        TrainedOn(run, 31)


def test_what_is_searched_for_leaves_the_template_out() -> None:
    template = "Question: {{ question }}\nAnswer:"
    items = [
        item(0, "Question: Which of the planets has no moon at all?\nAnswer:", "Venus"),
        item(1, "Question: Why?\nAnswer:", "because of the tides and the moon"),
        item(2, "Question: Who?\nAnswer:", "he"),
        item(3, "Question: What is the best of these answers?\nAnswer:", "one"),
        item(4, "Question: What is the best of these answers?\nAnswer:", "two"),
        Item(5, answers=("The cats that ran home sleep.", "The cats that ran home sleeps."), gold=(0,)),
        Item(6, ("",), ("",), gold=(0,)),
    ]
    texts = texts_of(items, [template])
    by_item = {(each.item, each.part): each for each in texts.wanted}
    assert by_item[0, "question"].words == ("which", "of", "the", "planets", "has", "no", "moon", "at", "all")
    assert by_item[0, "question"].answers == (("venus",),)
    assert by_item[1, "both"].words == ("why", "because", "of", "the", "tides", "and", "the", "moon")
    assert by_item[1, "answer"].words == ("because", "of", "the", "tides", "and", "the", "moon")
    assert not by_item[3, "question"].alone  # several items have it, so that it tells nothing without its answer
    assert by_item[5, "answer"].words == ("the", "cats", "that", "ran", "home", "sleep")
    assert texts.short == [2, 6]


def test_a_shared_question_counts_with_its_own_answer_alone(tmp_path: Path) -> None:
    draw = random.Random(1)
    question = " ".join(words(draw, 12))
    documents = [" ".join(words(draw, 30)) for _ in range(30)] + [f"{question} is two"]
    run = tmp_path / "run"
    make_run(run, documents, 20)
    asked = [item(number, question, answer) for number, answer in enumerate(["one", "two", "three"])]
    (found,) = TrainedOn(run).look_for([Asked(asked)])
    assert [(each.number, each.question, bool(each.both)) for each in found.items] == [(1, [], True)]


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path) -> None:
    draw = random.Random(1)
    documents = [" ".join(words(draw, 30)) for _ in range(40)]
    run = tmp_path / "run"
    make_run(run, documents, 12)
    mark = Asked([planted(draw, 0)[0]])

    def refused(change: Any, match: str) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        change(copy)
        with pytest.raises(UserError, match=match) as error:
            TrainedOn(copy).look_for([mark])
        assert "\n" not in str(error.value)

    refused(lambda copy: (copy / "config.yaml").unlink(), "is no run, since it has no config.yaml")
    refused(lambda copy: (copy / "ledger.jsonl").unlink(), "has no ledger of what it was trained on")
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    gap = "".join(lines[:4] + lines[5:])
    refused(lambda copy: (copy / "ledger.jsonl").write_text(gap), "has no row of step 5 that goes on with sample 32")
    other = yaml.safe_load((run / "config.yaml").read_text())
    other["run"]["seed"] = 7
    refused(lambda copy: (copy / "config.yaml").write_text(yaml.safe_dump(other)), "run.seed = 0, but it is 7")

    def other_tokenizer(copy: Path) -> None:
        shutil.rmtree(copy / "tokenizer")
        prepare_tokenizer(recorded_config(copy).data, copy / "tokenizer", roles=["eos", "mask"])

    refused(other_tokenizer, "the run was saved with data.tokenizer = ")
    shutil.move(tmp_path / "run-data", tmp_path / "elsewhere")
    refused(lambda copy: None, "run-data")


def _eval(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return json.loads(result.stdout)["tasks"][0]


@pytest.mark.slow
def test_only_items_that_were_seen_with_their_answers_gain_from_it(tmp_path: Path) -> None:
    draw = random.Random(11)
    vocabulary = words(draw, 60)
    questions = [" ".join(draw.choices(vocabulary, k=8)) for _ in range(120)]
    answers = [" ".join(draw.choices(vocabulary, k=2)) for _ in range(120)]
    documents = [" ".join(draw.choices(vocabulary, k=10)) for _ in range(100)]
    planted_at = draw.sample(range(120), 20)
    for _ in range(20):
        documents += [f"{questions[number]} {answers[number]}" for number in planted_at[:10]]
        documents += [questions[number] for number in planted_at[10:]]
    source = write_jsonl(tmp_path / "data", draw.sample(documents, len(documents)))
    settings = {
        "run": {"directory": str(tmp_path / "run"), "threads": 1, "device": "cpu"},
        "data": {"sources": [source], "tokenizer": {"kind": "sentencepiece", "train": {"vocab_size": 600}},
                 "sequence_length": 64, "lanes": 4, "span_bytes": 2000, "shuffle_buffer": 64, "workers": 0},
        "model": {"layers": 2, "hidden_size": 64, "heads": 4, "max_positions": 64, "positions": "rotary"},
        "optimizer": {"lr": 0.005},
        "train": {"steps": 240, "global_batch": 16, "micro_batch": 16},
        "checkpoint": {"interval": 30, "keep": 9},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [
        {"q": q, "right": a, "wrong": " ".join(draw.choices(vocabulary, k=2))}
        for q, a in zip(questions, answers, strict=True)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "kind": "choice", "context": "{{ q }}", "answers": ["{{ right }}", "{{ wrong }}"], "gold": 0,
        "data": {"files": ["quiz.jsonl"]}, "metrics": ["answer_bits_per_byte", "accuracy"],
    }  # fmt: skip
    (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(task))
    done = forked.run("train", "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run, asked = tmp_path / "run", ("--tasks", tmp_path / "quiz.yaml")
    first = run / "checkpoints" / "step-00000030"
    _eval(first, *asked)
    report = _eval(run, *asked, "--contamination", run, "--before", first)
    found = report["contamination"]
    assert (found["controls_found"], found["controls"], found["steps"]) == (0, 500, 240)
    assert {each["number"] for each in found["items"]} == set(planted_at)
    assert {each["number"] for each in found["items"] if each["both"]} == set(planted_at[:10])
    effects = {each["which"]: each for each in found["effects"]}
    assert {(each["seen"], each["unseen"]) for each in effects.values()} == {(10, 100)}
    assert effects["with answer"]["gain"]["low"] > 0
    assert effects["question alone"]["gain"]["low"] < 0  # which taught that nothing follows
    assert found["without_seen"]["accuracy"]["n"] == 100
