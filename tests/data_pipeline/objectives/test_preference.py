"""Prompts and answers to rows: tokens, positions and what is learned beside a reading by hand; wrong records with their
place; what is too long."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.answers import CUT_ANSWER, CUT_PROMPT, AnswersSettings
from data_pipeline.objectives.preference import PreferenceObjective
from data_pipeline.objectives.reward import RewardObjective
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.chat_files import ChatTemplates

LENGTH = 24
PAIRS = PreferenceObjective()
ALONE = PreferenceObjective(loss="kto")
ROWS = [
    {"prompt": "What? ", "chosen": "good", "rejected": "not good"},
    {"prompt": "\u4f60\u597d", "chosen": "\u597d", "rejected": "\U0001f600"},
    {"prompt": "a\r\nb", "chosen": " x\n", "rejected": "yy\r\n"},
]
JUDGED = [
    {"prompt": "one ", "answer": "aa", "label": True},
    {"prompt": "two ", "answer": "b", "label": False},
    {"prompt": "three ", "answer": "\u597d", "label": "TRUE"},
]


def config_of(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = "answer" in rows[0]
    fields = {name: name for name in (("answer", "label") if alone else ("chosen", "rejected"))}
    source = {"kind": "jsonl", "paths": [str(path)], "field": "prompt", "fields": fields, **changes.pop("source", {})}
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": LENGTH, "lanes": 1, "shuffle_buffer": 1}
    return DataConfig.model_validate({"sources": [source], "order": "finite", **settings, **changes})


def tokenizer_of(config: DataConfig, folder: Path, objective: AnswersSettings) -> Tokenizer:
    return prepare_tokenizer(config, folder / "tokenizer", roles=objective.roles(config.sequence_length))


def loader_of(config: DataConfig, folder: Path, objective: AnswersSettings) -> TrainLoader:
    tokenizer = tokenizer_of(config, folder, objective)
    cache = folder / "cache"
    return TrainLoader(config, tokenizer, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=cache)


def by_hand(prompt: str, answer: str, tokenizer: Tokenizer, objective: AnswersSettings) -> tuple[list[int], ...]:
    """Inputs, and those of them that belong to the answer with their targets."""
    eos = tokenizer.special["eos"]
    text, words = (list(map(int, tokenizer.encode(each))) for each in (prompt, answer))
    head = [*text, eos] if objective.end_prompt else [eos, *text]
    whole = [*head, *words, eos]
    if isinstance(objective, RewardObjective):
        return whole, list(range(len(head), len(whole))), [*words, eos]
    return whole[:-1], list(range(len(head) - 1, len(whole) - 1)), [*words, eos]


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    "objective", [PAIRS, PreferenceObjective(end_prompt=True), RewardObjective(), ALONE], ids=lambda each: each.name
)
def test_rows_are_those_of_a_reading_by_hand(objective: AnswersSettings, order: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = JUDGED if objective is ALONE else ROWS
    config = config_of(tmp_path, rows, order=order)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, objective)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    with loader_of(config, tmp_path, objective) as loader:
        batch, _ = loader.take(6)
    seen: Counter[int] = Counter()
    for each in (batch, held.batch([0, 1, 2])):
        assert each.weights.tolist() == [[1.0]] * each.size
        for place in range(each.size):
            halves = []
            for half in (slice(0, LENGTH), slice(LENGTH, None)):
                answer = each.labels[objective.name][place, half].nonzero()[:, 0].tolist()
                size = answer[-1] + 1
                halves.append((each.inputs[place, half][:size].tolist(), answer, each.targets[place, half][answer]))
                assert each.positions is not None
                assert each.positions[place, half].tolist() == list(range(LENGTH))
                assert each.segment_ids is not None
                number = 0 if half.start == 0 else 1
                assert each.segment_ids[place, half].tolist() == [number] * size + [-1] * (LENGTH - size)
            found = [(inputs, answer, targets.tolist()) for inputs, answer, targets in halves]
            for index, row in enumerate(rows):
                if objective is ALONE:
                    texts = (row["answer"], rows[index - 1]["answer"])
                else:
                    texts = (row["chosen"], row["rejected"])
                wanted = [by_hand(row["prompt"], text, tokenizer, objective) for text in texts]
                if found == wanted:
                    seen[index] += 1
                    if objective is ALONE:
                        assert each.labels["desirable"][place] == (row["label"] in (True, "TRUE"))
    assert seen == {0: 3, 1: 3, 2: 3}


def test_fill_has_no_answers(tmp_path: Path) -> None:
    config = config_of(tmp_path, ROWS)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, PAIRS)
    batch = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=PAIRS).batch([0, -1])
    assert batch.weights.tolist() == [[1.0], [0.0]]
    assert (batch.labels["preference"][1] == -1).all()


@pytest.mark.parametrize("objective", [PAIRS, RewardObjective()], ids=["preference", "reward"])
def test_what_is_too_long_is_cut_and_counted(objective: AnswersSettings, tmp_path: Path) -> None:
    """The same of the prompt for both answers, from its beginning; of an answer its end."""
    rows = [
        {"prompt": "0123456789" * 3, "chosen": "yes", "rejected": "no no"},
        {"prompt": "abc", "chosen": "x" * 40, "rejected": "y"},
        {"prompt": "short", "chosen": "a", "rejected": "b"},
    ]
    config = config_of(tmp_path, rows)
    config = config.model_copy(update={"evaluation": config.sources})
    tokenizer = tokenizer_of(config, tmp_path, objective)
    held = build_evaluation_set(config, tokenizer, tmp_path / "cache", objective=objective)
    assert held.dropped == {CUT_ANSWER: 1, CUT_PROMPT: 2}
    batch = held.batch([0, 1])
    inputs = batch.inputs.reshape(2, 2, LENGTH)
    special = set(tokenizer.special.values())

    def text(row: int, half: int) -> str:
        return tokenizer.decode(np.array([token for token in inputs[row, half].tolist() if token not in special]))

    room = LENGTH + isinstance(objective, PreferenceObjective) - 2
    kept = ("0123456789" * 3)[-(room - len("no no")) :]
    assert [text(0, 0), text(0, 1)] == [f"{kept}yes", f"{kept}no no"]
    assert [text(1, 0), text(1, 1)] == ["x" * (LENGTH - 1), "y"]
    strict = objective.model_copy(update={"too_long": "refuse"})
    with pytest.raises(UserError, match=r"jsonl:1: the prompt with its longest answer has 3[67] tokens, but data\."):
        loader_of(config, tmp_path / "other", strict)


@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rejected": "good"}, 'chosen and rejected are the same text ("good"), so that neither is preferred; correct'),
        ({"rejected": None}, "the record has no rejected answer; give it one, or leave the record out"),
        ({"chosen": " \n"}, "the chosen answer is empty; give it a text, or leave the record out"),
        ({"chosen": 5}, "the chosen answer is 5, but must be a text; correct the record"),
        (
            {"rejected": [{"role": "user", "content": "so"}, {"role": "assistant", "content": "no"}]},
            "the rejected answer is 2 messages ([",
        ),
        ({"chosen": ["a"]}, 'the chosen answer is ["a"], but must be a text'),
    ],
)
def test_a_wrong_pair_stops_with_its_place(changes: dict[str, Any], words: str, order: str, tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1], {**ROWS[0], **changes}]
    config = config_of(tmp_path, rows, order=order)
    with pytest.raises(UserError) as caught, loader_of(config, tmp_path, PAIRS) as loader:
        loader.take(3)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("label", [1, "yes", [True], 0.0])
def test_a_label_that_is_no_truth_value_stops_with_its_place(label: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, [*JUDGED, {**JUDGED[0], "label": label}])
    with pytest.raises(UserError, match=r"rows\.jsonl:4: the label is .*, but must be true or false; correct"):
        loader_of(config, tmp_path, ALONE)
    config = config_of(tmp_path, [{**JUDGED[0], "label": None}])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the record has no label; give it true or false"):
        loader_of(config, tmp_path, ALONE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"fields": {"chosen": "chosen"}}, r"does not say which field holds the rejected; set its fields to"),
        ({"fields": {"chosen": "chosen", "rejected": "worse"}}, r"fields\.rejected: .* has no field 'worse' among"),
    ],
)
def test_a_source_without_an_answer(source: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        loader_of(config_of(tmp_path, ROWS, source=source), tmp_path, PAIRS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing is 0.1, but loss is ipo, which has none; it is for"),
        ({"loss": "orpo", "reference": "a"}, "reference is a, but loss is orpo, which has none"),
        ({"odds_weight": 0.2}, "odds_weight is 0.2, but loss is dpo, which has none; it is for orpo: leave it out"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreferenceObjective(**settings)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [("user", "Hi"), ("assistant", "Hello"), ("user", "\u4f60\u597d?")]
SHAREGPT = {"user": "human", "assistant": "gpt"}


def messages(turns: list[tuple[str, str]], *, share: bool = False) -> list[dict[str, str]]:
    if share:
        return [{"from": SHAREGPT[role], "value": text} for role, text in turns]
    return [{"role": role, "content": text} for role, text in turns]


FORMS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "conversations": messages(TURNS, share=True),
        "chosen": {"from": "gpt", "value": "Good"},
        "rejected": {"from": "gpt", "value": "Bad bad"},
    },
    "lists": {
        "prompt": messages(TURNS),
        "chosen": messages([("assistant", "Good")]),
        "rejected": messages([("assistant", "Bad bad")]),
    },
    "implicit": {
        "chosen": messages([*TURNS, ("assistant", "Good")]),
        "rejected": messages([*TURNS, ("assistant", "Bad bad")]),
    },
    "texts": {"messages": messages(TURNS), "chosen": "Good", "rejected": "Bad bad"},
}


@pytest.mark.parametrize("form", FORMS)
def test_dialogues_are_read_by_the_chat_template(form: str, tmp_path: Path) -> None:
    """The ids are those of the rendered text; only the last answer and its end are learned."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(FORMS[form]) + "\n")
    source = {"kind": "jsonl", "paths": [str(path)], "layout": "preference"}
    config = DataConfig.model_validate(
        {"sources": [source], "order": "finite", "tokenizer": {"kind": "bytes"}, "sequence_length": 200}
    )
    tokenizer = tokenizer_of(config, tmp_path, PAIRS)
    tokenizer.chat = ChatTemplates({"default": CHATML})
    cache = tmp_path / "cache"
    with TrainLoader(config, tokenizer, objective=PAIRS, seed=1, dp_rank=0, dp_size=1, cache=cache) as loader:
        batch, _ = loader.take(1)
    head = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TURNS) + "<|im_start|>assistant\n"
    for half, answer in enumerate(("Good", "Bad bad")):
        part = slice(200 * half, 200 * half + 200)
        learned = batch.labels["preference"][0, part] > 0
        size = int(learned.nonzero()[-1]) + 1
        ids = [*batch.inputs[0, part][:size].tolist(), int(batch.targets[0, part][size - 1])]
        text = tokenizer.decode(np.array(ids))
        assert text.startswith(f"{head}{answer}<|im_end|>")
        assert tokenizer.decode(batch.targets[0, part][learned].numpy()).startswith(f"{answer}<|im_end|>")
        first = int(learned.nonzero()[0])
        assert tokenizer.decode(batch.inputs[0, part][: first + 1].numpy()) == head


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**FORMS["texts"], "messages": [{"role": "poet", "content": "a"}]}, "message 1 has the role"),
        ({**FORMS["texts"], "chosen": {"role": "user", "content": "x"}}, "the chosen answer is {"),
        ({**FORMS["texts"], "messages": [], "chosen": "a", "rejected": "b"}, "messages is empty"),
        ({"chosen": "a", "rejected": "b"}, "the record has no messages"),
        ({**FORMS["texts"], "rejected": ""}, "the rejected answer is empty"),
    ],
)
def test_dialogues_that_are_none_stop_with_their_place(record: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n")
    source = {"kind": "jsonl", "paths": [str(path)], "layout": "preference"}
    config = DataConfig.model_validate(
        {"sources": [source], "order": "finite", "tokenizer": {"kind": "bytes"}, "sequence_length": 200}
    )
    with pytest.raises(UserError) as caught:
        loader_of(config, tmp_path, PAIRS)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert words in str(caught.value)
