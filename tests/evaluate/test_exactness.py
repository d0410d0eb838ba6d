"""A score is a function of the weights and the item: the bytes of an artefact do not depend on how it was computed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.placed import Placed, place_whole
from llmscale.evaluate.scoring import Asked, RowScorer, records_of
from llmscale.evaluate.tasks import load_tasks
from tests.evaluate.models import CONTEXT, FAMILIES, write_checkpoint, write_tasks

CPU = torch.device("cpu")


def evaluate(placed: Placed, tasks: dict[str, Path], output: Path, **choices: object) -> dict[str, bytes]:
    """The lines of each artefact."""
    selected = load_tasks([str(path) for path in tasks.values()]).tasks
    prepared = prepare(placed, selected, Choices(output=output, **choices))  # type: ignore[arg-type]
    run(prepared, lambda task, done, items: None)
    return {each.task.name: (each.folder / "items.jsonl").read_bytes() for each in prepared}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


QUICK = ("gpt2",)
"""Families whose tests are not slow."""
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("family", ALL)
def test_a_score_depends_on_its_item_alone(family: str, tmp_path: Path) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family)), CPU, torch.float32)
    # Of encoders and encoder-decoders each token is a row of its own.
    items = 6 if placed.config.model.architecture == "decoder" else 2
    tasks = write_tasks(tmp_path / "tasks", items)
    torch.set_num_threads(1)
    whole = evaluate(placed, tasks, tmp_path / "first")
    assert all(lines.count(b"\n") == items for lines in whole.values())
    draw = random.Random(family)
    for trial, threads in enumerate((1, 2)):
        torch.set_num_threads(threads)
        tokens = draw.choice([16, 100, 700])
        assert evaluate(placed, tasks, tmp_path / f"trial-{trial}", batch_tokens=tokens) == whole, (threads, tokens)


@pytest.mark.parametrize(
    "family", ["llama", "experts", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bert", "t5"))]
)
def test_a_score_does_not_depend_on_order_and_neighbours(family: str, tmp_path: Path) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family)), CPU, torch.float32)
    (task,) = load_tasks([str(write_tasks(tmp_path / "tasks", items=8)["choice"])]).tasks
    (prepared,) = prepare(placed, [task], Choices(output=tmp_path / "out"))
    scores = {record.item: record for some in prepared.records(0, lambda done: None) for record in some}
    shuffled = list(prepared.items)
    random.Random(1).shuffle(shuffled)
    asked = [Asked(item, request_of(placed, item)) for item in shuffled[:5]]
    scorer = RowScorer(placed.scoring, placed.config.model, placed.tokenizer, tokens=300)
    for some in records_of(asked, scorer, window=3):
        for record in some:
            assert record == scores[record.item]


def request_of(placed: Placed, item: object) -> object:
    from data_pipeline.reading.reader import Reader
    from llmscale.evaluate.scorers import scorer_for
    from llmscale.generate.prompts import reading_of

    config = placed.config
    reader = Reader(placed.tokenizer, config.model.architecture, reading_of(config.objective))
    return scorer_for(config.model, config.objective)(reader, config.model).request(item)  # type: ignore[arg-type]


def brute_causal(placed: Placed, context: str, answer: str) -> list[float]:
    """Log-probabilities of a byte-level decoder, of one text at a time and without padding."""
    model, tokenizer = placed.whole, placed.tokenizer
    before = [tokenizer.special["eos"], *tokenizer.encode(context)]
    ids = [*before, *tokenizer.encode(answer)]
    prefix = torch.tensor([len(before)]) if placed.config.objective.name == "prefix" else None
    logits = model.head(model(torch.tensor([ids]), prefix_lengths=prefix).hidden)[0].log_softmax(-1)
    return [float(logits[place - 1, ids[place]]) for place in range(len(before), len(ids))]


def brute_masked(placed: Placed, context: str, answer: str) -> list[float]:
    """Log-probabilities of an encoder's tokens, each hidden in turn."""
    model, tokenizer = placed.whole, placed.tokenizer
    special = tokenizer.special
    ids = [special["cls"], *tokenizer.encode(context + answer), special["sep"]]
    found = []
    for place in range(len(tokenizer.encode(context)) + 1, len(ids) - 1):
        hidden = [*ids[:place], special["mask"], *ids[place + 1 :]]
        logits = model.head(model(torch.tensor([hidden])).hidden)[0, place].log_softmax(-1)
        found.append(float(logits[ids[place]]))
    return found


def brute_infill(placed: Placed, context: str, answer: str) -> list[float]:
    """Log-probabilities of an answer that T5's first sentinel stands for; each word in turn where there is no
    context."""
    model, tokenizer = placed.whole, placed.tokenizer
    special, encode = tokenizer.special, tokenizer.encode
    words = [answer] if context else split_words(answer)
    found, done = [], 0
    for word in words:
        left, right = answer[:done], answer[done + len(word) :]
        source = [*encode(context + left), special["sentinel_0"], *encode(right), special["eos"]]
        target = [special["sentinel_0"], *encode(word)]
        inputs = torch.tensor([[special["pad"], *target[:-1]]])
        logits = model.head(model(inputs, encoder_inputs=torch.tensor([source])).hidden)[0].log_softmax(-1)
        found += [float(logits[place, token]) for place, token in enumerate(target)][1:]
        done += len(word)
    return found


def split_words(text: str) -> list[str]:
    """Words with the space before them, as a byte-level vocabulary has them."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


BRUTE: dict[str, Callable[[Placed, str, str], list[float]]] = {"bert": brute_masked, "t5": brute_infill}


@pytest.mark.parametrize("family", ALL)
def test_scores_are_those_of_one_text_at_a_time(family: str, tmp_path: Path) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family, init_std=0.1)), CPU, torch.float32)
    tasks = write_tasks(tmp_path / "tasks", items=4)
    selected = load_tasks([str(path) for path in tasks.values()]).tasks
    prepared = prepare(placed, selected, Choices(output=tmp_path / "out"))
    run(prepared, lambda task, done, items: None)
    brute = BRUTE.get(family, brute_causal)
    with torch.no_grad():
        for each in prepared:
            records = load_artefact(each.folder).records
            for item, record in zip(each.items, records, strict=True):
                for place, answer in enumerate(item.answers):
                    wanted = brute(placed, item.context_of(place), answer)
                    assert record.answers[place].log_probabilities == pytest.approx(wanted, abs=2e-5)
                    if item.neutral is not None:
                        neutral = sum(brute(placed, item.neutral, answer))
                        assert record.neutral[place] == pytest.approx(neutral, abs=1e-4)


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bert", "t5", "experts"))]
)
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(family: str, tmp_path: Path) -> None:
    placed = place_whole(str(write_checkpoint(tmp_path / "model", family)), CPU, torch.float32)
    items = 12 if placed.config.model.architecture == "decoder" else 4
    task = {"choice": write_tasks(tmp_path / "tasks", items)["choice"]}
    whole = evaluate(placed, task, tmp_path / "out")["choice"]
    (lines,) = (tmp_path / "out").glob("*/items.jsonl")
    draw = random.Random(2)
    for _ in range(6):
        lines.write_bytes(whole[: draw.randrange(len(whole))])
        assert evaluate(placed, task, tmp_path / "out")["choice"] == whole


def test_answers_of_an_item_share_what_they_have_in_common(tmp_path: Path) -> None:
    """That rows hold several answers is why choices are cheap; that they may be as long as the context, why not."""
    placed = place_whole(str(write_checkpoint(tmp_path / "model", "llama")), CPU, torch.float32)
    (task,) = load_tasks([str(write_tasks(tmp_path / "tasks", items=8)["choice"])]).tasks
    for item in task.items():
        request = request_of(placed, replace(item, neutral=None))
        tokens = sum(len(row.inputs) for row in request.rows)  # type: ignore[attr-defined]
        alone = sum(len(item.contexts[0] + answer) for answer in item.answers)
        assert tokens < 0.7 * alone + 16
        assert all(len(row.inputs) <= CONTEXT for row in request.rows)  # type: ignore[attr-defined]


def test_joined_texts_score_the_same_in_any_batch_and_from_any_item_on(tmp_path: Path) -> None:
    task = write_tasks(tmp_path / "tasks", items=9)["pairs"]
    task.write_text(
        "{kind: perplexity, text: '{{ good }}', documents: joined, window: 40, stride: 24,"
        " data: {files: [pairs.jsonl]}}"
    )
    placed = place_whole(str(write_checkpoint(tmp_path / "model", "gpt2")), CPU, torch.float32)
    loaded = load_tasks([str(task)]).tasks
    (prepared,) = prepare(placed, loaded, Choices(output=tmp_path / "out"))
    whole = [record for some in prepared.records(0, lambda done: None) for record in some]
    for first in (1, 4, 8):  # as after a kill
        assert [record for some in prepared.records(first, lambda done: None) for record in some] == whole[first:]
    (other,) = prepare(placed, loaded, Choices(output=tmp_path / "out", batch_tokens=16))
    assert [record for some in other.records(0, lambda done: None) for record in some] == whole
    (limited,) = prepare(placed, loaded, Choices(output=tmp_path / "out", limit=5))
    assert not {item.digest for item in limited.items} & {record.item for record in whole}
    placed = place_whole(str(write_checkpoint(tmp_path / "bert", "bert")), CPU, torch.float32)
    with pytest.raises(UserError, match=r"documents is joined, which decoders read, but .* pseudo_likelihood; set"):
        prepare(placed, loaded, Choices(output=tmp_path / "out"))
