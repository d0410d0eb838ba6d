"""Dialogues to rows: each once an epoch and apart from its neighbours, the same whoever reads them and wherever they go
on, cut or left out as the settings say; records that are none stop with their place."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.chat import ChatObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import BytesTokenizer
from data_pipeline.tokenizer.chat_files import ChatTemplates
from tests.data_pipeline.reading.chat_templates import FORMS
from tests.data_pipeline.reading.test_dialogue import byte_level
from tests.data_pipeline.reading.test_dialogue import spelled as spelled_by

LENGTH = 96
ORDERS = pytest.mark.parametrize("order", ["stream", "finite"])


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def dialogues(count: int, longest: int = 30) -> list[list[dict[str, Any]]]:
    draw = random.Random(5)

    def text(number: int) -> str:
        return f"{number} " + "".join(draw.choices("abc 你😀", k=draw.randint(0, longest)))

    return [turns(*(text(n) for _ in range(2 * draw.randint(1, 2)))) for n in range(count)]


def config_of(folder: Path, messages: list[Any], **changes: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "chat": each}) + "\n" for each in messages))
    source = {"kind": "jsonl", "paths": [str(path)], "fields": {"messages": "chat"}}
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": LENGTH, "lanes": 1, "shuffle_buffer": 1, **changes}
    return DataConfig.model_validate({"sources": [source], "workers": 0, **settings})


def loader_of(config: DataConfig, objective: ChatObjective, folder: Path, **where: Any) -> TrainLoader:
    place = {"dp_rank": 0, "dp_size": 1, "seed": 1, **where}
    return TrainLoader(config, BytesTokenizer(), objective=objective, cache=folder / "cache", **place)


def shown(messages: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """What is read of a dialogue by the built-in form, and what is learned."""
    eos, text = BytesTokenizer().token_text(BytesTokenizer().special["eos"]), ""
    for message in messages:
        name = message["role"].capitalize()
        text += f"{name}: {message['content']}" + (f"{eos}\n" if name == "Assistant" else "\n")
    learned = tuple(f" {m['content']}{eos}" for m in messages if m["role"] == "assistant")
    return text.removesuffix("\n"), learned


def spelled(tokens: list[int]) -> str:
    tokenizer = BytesTokenizer()
    ends = np.flatnonzero(np.array([*tokens]) == tokenizer.special["eos"])
    parts, place = "", 0
    for end in ends.tolist():
        parts += tokenizer.decode(tokens[place:end]) + tokenizer.token_text(tokenizer.special["eos"])
        place = end + 1
    return parts + tokenizer.decode(tokens[place:])


def documents_of(batch: Batch) -> list[tuple[str, tuple[str, ...]]]:
    """The dialogues in a batch's rows and what is learned of each."""
    found = []
    segments = batch.segment_ids if batch.segment_ids is not None else torch.zeros_like(batch.inputs)
    for row in range(batch.size):
        for segment in range(int(segments[row].max()) + 1):
            here = segments[row] == segment
            inputs, targets = batch.inputs[row][here].tolist(), batch.targets[row][here].tolist()
            weights = batch.weights[row][here].tolist()
            size = len(inputs)
            if batch.segment_ids is None:
                size = max(place for place, weight in enumerate(weights) if weight) + 1
            else:
                assert batch.positions is not None
                assert batch.positions[row][here].tolist() == list(range(size))
            assert inputs[1:size] == targets[: size - 1]
            runs: list[list[int]] = []
            for place in range(size):
                if weights[place]:
                    if place == 0 or not weights[place - 1]:
                        runs.append([])
                    runs[-1].append(targets[place])
            found.append((spelled([inputs[0], *targets[:size]]), tuple(map(spelled, runs))))
    return found


@ORDERS
@pytest.mark.parametrize("pack", [True, False])
def test_each_dialogue_once_an_epoch_apart_from_the_others(order: str, pack: bool, tmp_path: Path) -> None:
    made = dialogues(50, longest=6)
    config = config_of(tmp_path, made, order=order)
    objective = ChatObjective(pack=pack)
    expected = Counter(shown(each) for each in made)
    with loader_of(config, objective, tmp_path) as loader:
        found: Counter[Any] = Counter()
        rows = 0
        while found.total() < len(made):
            batch, _ = loader.take(1)
            rows += 1
            found.update(documents_of(batch))
    assert found == expected
    assert (rows < len(made)) == pack
    held = build_evaluation_set(
        config.model_copy(update={"evaluation": config.sources}),
        BytesTokenizer(),
        tmp_path / "held",
        objective=objective,
    )
    assert Counter(documents_of(held.batch(range(len(held))))) == expected
    assert held.tokens == sum(len(text.encode()) for _, texts in expected for text in texts) - sum(
        len(texts) * (len(BytesTokenizer().token_text(BytesTokenizer().special["eos"])) - 1) for _, texts in expected
    )
    assert held.bytes == sum(len(each["content"].encode()) + 1 for one in made for each in one[1::2])


@ORDERS
def test_two_ranks_and_a_resume_read_the_same(order: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, dialogues(300), order=order, lanes=4, span_bytes=2000, shuffle_buffer=16)
    objective = ChatObjective()

    def rows(batch: Batch) -> dict[int, Any]:
        both = zip(batch.sample_ids.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True)
        return {number: rest for number, *rest in both}

    with loader_of(config, objective, tmp_path) as loader:
        alone = [rows(loader.take(8)[0]) for _ in range(12)]
    together: list[dict[int, Any]] = []
    cursor = None
    for first in (0, 40):
        loaders = [
            loader_of(config, objective, tmp_path, dp_rank=r, dp_size=2, first_sample=first, cursor=cursor)
            for r in (0, 1)
        ]
        for _ in range(5 if first == 0 else 7):
            together.append({k: v for loader in loaders for k, v in rows(loader.take(4)[0]).items()})
        cursor = merge_cursors([json.loads(json.dumps(loader.cursor())) for loader in loaders])
        for loader in loaders:
            loader.close()
    assert together == alone


@ORDERS
def test_what_is_too_long_is_cut_or_left_out_and_counted(order: str, tmp_path: Path) -> None:
    long = turns("q", "a" * 200)
    late = turns("q" * 200, "never seen")
    config = config_of(tmp_path, [turns("q", "short"), long, late], order=order)

    def read(policy: Any) -> tuple[set[Any], dict[str, int]]:
        objective = ChatObjective(too_long=policy)
        held = build_evaluation_set(
            config.model_copy(update={"evaluation": config.sources}),
            BytesTokenizer(),
            tmp_path / policy,
            objective=objective,
        )
        with loader_of(config, objective, tmp_path) as loader:
            found = {each for _ in range(4) for each in documents_of(loader.take(1)[0])}
        assert found == set(documents_of(held.batch(range(len(held)))))
        # A byte is a token, and so is the end of the turn that is not cut: both count what is kept alone.
        assert held.bytes == held.tokens - 1
        return found, held.dropped

    cut, counts = read("truncate")
    assert {len(text.encode()) for text, _ in cut if "aaa" in text} == {LENGTH + 1}
    assert len(cut) == 2
    assert counts == {
        "dialogue longer than the context, cut": 1,
        "dialogue cut before anything is learned, left out": 1,
    }
    left, counts = read("drop")
    assert [learned for _, learned in left] == [shown(turns("q", "short"))[1]]
    assert counts == {"dialogue longer than the context, left out": 2}
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the dialogue has \d+ tokens, but data.sequence_length is 96"):
        read("refuse")


GOOD = turns("hi", "yes")
WRONG = {
    "a role": (
        [{"role": "human", "content": "x"}],
        'message 1 has the role "human", but roles are system, user, assis',
    ),
    "no role": ([{"content": "x"}], "message 1 has the role null"),
    "no assistant": (turns("x"), "the dialogue has no turn of assistant with a weight"),
    "no messages": (None, "the record has no messages; give it some"),
    "none": ([], "messages is empty; give it a user's and an assistant's turn"),
    "a text": ("hello", 'messages is "hello", but must be a list of objects with role and content'),
    "texts": (["hello"], 'message 1 is "hello", but must be an object with role and content'),
    "a number": (
        [*GOOD, {"role": "user", "content": 3}],
        "message 3 has the content 3, but only texts and lists of parts",
    ),
    "no content": ([{"role": "user"}], "message 1 has the content null"),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        'message 1 has the content [{"type": "image_url"',
    ),
    "a call": (
        [*GOOD, {"role": "assistant", "content": "see", "tool_calls": [{"function": {"name": "f"}}]}],
        'message 3 calls a tool ([{"function"',
    ),
    "a weight": (
        [{"role": "user", "content": "a", "weight": -1}],
        "message 1 has the weight -1, but it must be a number",
    ),
    "a tool": ([{"role": "tool", "content": "a"}, *GOOD], "refuses the dialogue: the built-in template knows system"),
}


@ORDERS
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_dialogue_stops_with_its_place(name: str, order: str, tmp_path: Path) -> None:
    messages, words = WRONG[name]
    config = config_of(tmp_path, [GOOD, GOOD, messages], order=order)
    with pytest.raises(UserError) as caught, loader_of(config, ChatObjective(), tmp_path) as loader:
        loader.take(9)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert words in said
    assert "\n" not in said


def test_an_empty_answer_is_counted() -> None:
    counts: Counter[str] = Counter()
    made = ChatObjective().build(BytesTokenizer(), LENGTH, 0)
    documents = [Document(0, 0, 0, "", values={"messages": turns("hi", answer)}) for answer in ("yes", " ")]
    assert len(list(made.checked(documents, lambda document: "", counts))) == 2
    assert counts == {"dialogue with an empty answer": 1}


def test_parts_of_type_text_and_a_merged_system_message(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}, GOOD[1]]
    config = config_of(tmp_path, [messages])
    with loader_of(config, ChatObjective(system="merge"), tmp_path) as loader:
        [(text, _), *_] = documents_of(loader.take(1)[0])
    assert text.startswith("User: be kind\n\nab\nAssistant: yes")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": {"human": 1}}, "weights names the role 'human', but roles are system, user, assistant, tool"),
        ({"weights": {"user": 0}}, "so that nothing is learned; give the assistant a weight"),
        ({"weights": {"user": -1}}, "greater than or equal to 0"),
        ({"too_long": "cut"}, "'truncate', 'drop' or 'refuse'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatObjective(**settings)
    assert words in str(caught.value)


def test_a_source_must_say_where_the_messages_are(tmp_path: Path) -> None:
    config = config_of(tmp_path, [GOOD])
    plain = config.sources[0].model_copy(update={"fields": {}})
    with pytest.raises(
        UserError, match=r"data\.sources\.0 does not say where the messages are; set its layout to auto"
    ):
        loader_of(config.model_copy(update={"sources": [plain]}), ChatObjective(), tmp_path)


FIVE: dict[str, Any] = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "alpaca of columns": lambda q, a: {"instruction": q, "output": a},
    "parts": lambda q, a: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": q}]},
            {"role": "assistant", "content": [{"type": "text", "text": a[:1]}, {"type": "text", "text": a[1:]}]},
        ]
    },
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("layout", FIVE)
def test_what_is_learned_in_every_layout_and_form_is_the_answer(layout: str, name: str, tmp_path: Path) -> None:
    """From the file to the batch: the learned tokens are the assistant's text and its end, nothing else."""
    form, tokenizer = FORMS[name], byte_level(FORMS[name].tokens)
    tokenizer.chat = ChatTemplates({"default": form.source}, {"bos_token": "<s>", "eos_token": "</s>"})
    draw = random.Random(f"{layout} {name}")
    texts = [(f"q{n} ?", f"{n}" + "".join(draw.choices("ab 你😀", k=6)) + ".") for n in range(12)]
    rows = [FIVE[layout](*pair) for pair in texts]
    if layout == "alpaca of columns":
        import pyarrow.parquet

        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    source = {"kind": path.suffix[1:], "paths": [str(path)], "layout": "auto"}
    config = DataConfig.model_validate({"sources": [source], "evaluation": [source], "sequence_length": 300})
    held = build_evaluation_set(config, tokenizer, tmp_path / "held", objective=ChatObjective())
    batch = held.batch(range(len(held)))
    learned = [
        spelled_by(tokenizer, [t for t, w in zip(targets, weights, strict=True) if w])
        for targets, weights in zip(batch.targets.tolist(), batch.weights.tolist(), strict=True)
    ]
    end = form.end or "</s>"
    assert "".join(learned) == "".join(f"{form.before}{answer}{end}" for _, answer in texts)


@ORDERS
def test_packed_pairs_hold_what_rows_of_their_own_hold(order: str, tmp_path: Path) -> None:
    """Sources and targets cut alike, each target predicted once, whatever else is in its row."""
    draw = random.Random(2)
    rows = [
        {"text": f"{n} " + "s" * draw.randint(0, 12), "target": f"{n}" + "t" * draw.randint(0, 6)} for n in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "paths": [str(path)], "target_field": "target"}
    settings = {"sequence_length": 30, "lanes": 1, "shuffle_buffer": 1, "workers": 0, "order": order}
    config = DataConfig.model_validate({"sources": [source], **settings})

    def targets(pack: bool) -> tuple[Counter[Any], int]:
        objective = Seq2SeqObjective(concatenate=True, target_length=14, pack=pack)
        found: Counter[Any] = Counter()
        with loader_of(config, objective, tmp_path) as loader:  # type: ignore[arg-type]
            for number in range(1, 99):
                batch, _ = loader.take(1)
                segments = batch.segment_ids if pack else torch.zeros_like(batch.inputs)
                assert segments is not None
                for segment in range(int(segments.max()) + 1):
                    chosen = (segments == segment) & (batch.weights > 0)
                    before = batch.inputs[(segments == segment) & (chosen.cumsum(1) <= 1)]
                    read = before[: int((before != BytesTokenizer().special["pad"]).sum())] if not pack else before
                    found[tuple(read.tolist()), tuple(batch.targets[chosen].tolist())] += 1
                if found.total() >= len(rows):
                    return found, number
        raise AssertionError("an epoch has no end")

    alone, many = targets(False)
    packed, few = targets(True)
    assert packed == alone
    assert few < 0.8 * many
