"""SQuAD's questions to windows of passages: which tokens the answer is, beside the source's characters; mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.span import NAME, SpanObjective, tokens_of
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from tests.data_pipeline.tokenizer.test_units import KINDS, PARTS, tokenizer

OBJECTIVE = SpanObjective(unanswerable=True, stride=7)
PASSAGES = ["Zoë lives in 北京, since 2019.", "👍🏽 e\u0301a is short"]


def squad(*paragraphs: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]} for context, qas in paragraphs]
    return {"version": "1", "data": data}


def asked(question: str, passage: str, *answers: str) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": passage.index(answer)} for answer in answers]
    return {"id": question, "question": question, "answers": found}


FIRST = BytesTokenizer().encode("\0")[0]
GOOD = squad(
    (PASSAGES[0], [asked("where?", PASSAGES[0], "北京", "in 北京"), asked("who?", PASSAGES[0], "Zoë")]),
    (PASSAGES[1], [asked("why?", PASSAGES[1]), asked("what?", PASSAGES[1], "👍🏽 e\u0301a")]),
)


def config_of(folder: Path, contents: Any, **changes: Any) -> DataConfig:
    path = folder / "questions.json"
    path.write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    source = {
        "kind": "json", "records": "data.paragraphs.qas", "paths": [str(path)], "field": "context",
        "fields": {"question": "question", "answers": "answers"}, **changes.pop("source", {}),
    }  # fmt: skip
    settings = {"tokenizer": {"kind": "bytes"}, "sequence_length": 30, "lanes": 1, "shuffle_buffer": 1, **changes}
    config = DataConfig.model_validate({"sources": [source], **settings})
    return config.model_copy(update={"evaluation": config.sources})


def tokenizer_for(config: DataConfig, folder: Path, objective: SpanObjective) -> Tokenizer:
    return prepare_tokenizer(config, folder / "tokenizer", roles=objective.roles(config.sequence_length))


def read(ids: list[int]) -> bytes:
    """The bytes of tokens, of which the first ids are special."""
    return bytes(token - FIRST for token in ids)


def questions(contents: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        qa["question"]: (paragraph["context"], qa)
        for article in contents["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }


@pytest.mark.parametrize("around", ["cls", "eos"])
@pytest.mark.parametrize("order", ["stream", "finite"])
def test_windows_and_answers(order: str, around: Any, tmp_path: Path) -> None:
    """Bytes are tokens, so that each row can be read by hand; the windows cover the passage, and each that holds the
    whole answer points at it."""
    objective = OBJECTIVE.model_copy(update={"special_tokens": around})
    config = config_of(tmp_path, GOOD, order=order)
    known = tokenizer_for(config, tmp_path, objective)
    held = build_evaluation_set(config, known, tmp_path / "cache", objective=objective)
    with TrainLoader(
        config, known, objective=objective, seed=1, dp_rank=0, dp_size=1, cache=tmp_path / "cache"
    ) as loader:
        trained, _ = loader.take(len(held))
    assert held.documents == 4
    end = known.special["sep" if around == "cls" else "eos"]
    for batch in (held.batch(range(len(held))), trained):
        seen: dict[str, set[int]] = {}
        for number in range(batch.size):
            size = int(batch.encoder_weights[number].sum())
            row = batch.inputs[number, :size].tolist()
            assert row.pop() == end
            if around == "cls":
                assert row[0] == known.special["cls"]
            cut = row.index(end)
            question = known.decode(row[around == "cls" : cut])
            passage, record = questions(GOOD)[question]
            data, window = passage.encode(), read(row[cut + 1 :])
            places = [at for at in range(len(data)) if data[at : at + len(window)] == window]
            first, last = batch.labels[NAME][number].tolist()
            nowhere = 0 if around == "cls" else size - 1
            answer = record["answers"][0] if record["answers"] else None
            if first == nowhere:
                start = 0 if answer is None else len(passage[: answer["answer_start"]].encode())
                stop = start if answer is None else start + len(answer["text"].encode())
                inside = [at for at in places if at <= start and stop <= at + len(window)]
                assert answer is None or not inside
            else:
                assert answer is not None
                assert read(row[first : last + 1]).decode() == answer["text"]
            seen.setdefault(question, set()).update(byte for at in places for byte in range(at, at + len(window)))
            if around == "cls":
                types = batch.segment_ids[number].tolist()
                assert types == [0] * (cut + 1) + [1] * (size - cut - 1) + [0] * (30 - size)
        assert {question: len(bytes_) for question, bytes_ in seen.items()} == {
            question: len(passage.encode()) for question, (passage, _) in questions(GOOD).items()
        }


def test_a_run_goes_on_at_any_window(tmp_path: Path) -> None:
    config = config_of(tmp_path, GOOD, lanes=2, span_bytes=50)
    known = tokenizer_for(config, tmp_path, OBJECTIVE)

    def loader(**more: Any) -> TrainLoader:
        return TrainLoader(config, known, objective=OBJECTIVE, seed=1, dp_rank=0, dp_size=1, **more)

    with loader() as whole:
        batch, _ = whole.take(24)
    for stop in range(1, 23, 3):
        with loader() as first:
            first.take(stop)
            cursor = merge_cursors([first.cursor()])
        with loader(first_sample=stop, cursor=cursor) as second:
            rest, _ = second.take(24 - stop)
        assert rest.inputs.tolist() == batch.inputs[stop:].tolist(), stop
        assert rest.labels[NAME].tolist() == batch.labels[NAME][stop:].tolist()


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=8),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
    st.lists(st.sampled_from(PARTS), max_size=8),
    st.sampled_from(["", " "]),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_tokens_are_those_with_its_bytes(
    kind: str, before: list[str], answer: list[str], behind: list[str], gap: str
) -> None:
    text = gap.join([*before, *answer, *behind])
    start = len(gap.join(before)) + len(gap)
    end = start + len(gap.join(answer))
    _, spans = tokenizer(kind).encode_with_spans(text)
    first, last = tokens_of(text, spans, start, end)
    own = set(range(len(text[:start].encode()), len(text[:end].encode())))
    touched = [place for place, (low, high) in enumerate(spans.tolist()) if set(range(low, high)) & own]
    assert (first, last) == ((touched[0], touched[-1]) if touched else (-1, -1))


def test_what_is_told_is_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path, GOOD)
    known = tokenizer_for(config, tmp_path, OBJECTIVE)
    held = build_evaluation_set(config, known, tmp_path / "a", objective=OBJECTIVE)
    assert held.dropped == {"too long passage read in windows": 2}
    cut = OBJECTIVE.model_copy(update={"overflow": "truncate", "question_length": 4})
    held = build_evaluation_set(config, known, tmp_path / "a", objective=cut)
    assert held.dropped == {"too long passage cut off": 2, "question cut off": 2}
    assert len(held) == 4
    refused = OBJECTIVE.model_copy(update={"overflow": "refuse"})
    with pytest.raises(UserError, match=r"questions\.json \(row 0\): the passage has 33 tokens, but"):
        build_evaluation_set(config, known, tmp_path / "b", objective=refused)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": [{"text": "Rome", "answer_start": 0}]}, "has 'Zoë '; it stands nowhere in it, correct"),
        ({"answers": [{"text": "北京", "answer_start": 12}]}, "at 12, where the passage has ' 北'; it stands at 13"),
        ({"answers": [{"text": "北京", "answer_start": -3}]}, "it stands at 13, correct the record"),
        ({"answers": [{"text": "北京", "answer_start": "13"}]}, "needs a text and the number of its first character"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "needs a text and the number of its first character"),
        ({"answers": []}, "question 'where?' has no answer; set objective.unanswerable=true"),
        ({"answers": "北京"}, "answers is \"北京\", but must be as in SQuAD"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "but must be as in SQuAD"),
        ({"question": None}, "the question is null, but must be a text"),
    ],
)  # fmt: skip
def test_a_wrong_record_stops_with_its_place(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = asked("who?", PASSAGES[0], "Zoë")
    config = config_of(tmp_path, squad((PASSAGES[0], [good, {**asked("where?", PASSAGES[0], "北京"), **change}])))
    objective = SpanObjective()
    known = tokenizer_for(config, tmp_path, objective)
    with pytest.raises(UserError) as caught:
        build_evaluation_set(config, known, tmp_path / "cache", objective=objective)
    assert str(caught.value).startswith(f"{tmp_path / 'questions.json'} (row 1): ")
    assert words in str(caught.value)


def test_an_empty_question_is_left_out(tmp_path: Path) -> None:
    blank = {**asked("who?", PASSAGES[0], "Zoë"), "question": " "}
    config = config_of(tmp_path, squad((PASSAGES[0], [blank, asked("who?", PASSAGES[0], "Zoë")])), sequence_length=60)
    known = tokenizer_for(config, tmp_path, SpanObjective())
    held = build_evaluation_set(config, known, tmp_path / "cache", objective=SpanObjective())
    assert held.dropped == {"empty question": 1}
    assert held.documents == 1


@pytest.mark.parametrize("told", [0, 5, 11, 19, 25, 90])
def test_a_misplaced_answer_is_taken_where_it_is_nearest(told: int, tmp_path: Path) -> None:
    passage = "ab cd ab ef 北京 ab gh"
    places = [at for at in range(len(passage)) if passage.startswith("ab", at)]
    asks = {"id": "1", "question": "who?", "answers": [{"text": "ab", "answer_start": told}]}
    config = config_of(tmp_path, squad((passage, [asks])), sequence_length=60)
    objective = SpanObjective(misplaced="nearest")
    known = tokenizer_for(config, tmp_path, objective)
    held = build_evaluation_set(config, known, tmp_path / "cache", objective=objective)
    first = int(held.batch([0]).labels[NAME][0, 0]) - len("who?") - 2
    nearest = min(places, key=lambda at: abs(at - told))
    assert first == len(passage[:nearest].encode())
    assert held.dropped == ({} if told in places else {"answer that stands elsewhere": 1})


def test_answers_as_an_object_of_lists(tmp_path: Path) -> None:
    """As the Hugging Face hub has them, in JSON lines."""
    rows = [{"context": PASSAGES[0], "question": "where?", "answers": {"text": ["北京"], "answer_start": [13]}}]
    config = config_of(tmp_path, [])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "paths": [str(path)], "field": "context", "fields": config.sources[0].fields}
    made = DataConfig.model_validate({**config.model_dump(), "sources": [source], "evaluation": [source],
                                      "sequence_length": 60})  # fmt: skip
    known = tokenizer_for(made, tmp_path, SpanObjective())
    batch = build_evaluation_set(made, known, tmp_path / "cache", objective=SpanObjective()).batch([0])
    first, last = batch.labels[NAME][0].tolist()
    assert read(batch.inputs[0, first : last + 1].tolist()).decode() == "北京"


@pytest.mark.parametrize(
    ("contents", "source", "words"),
    [
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, {}, "it has no 'qas' but 'context' on the way to its records"),
        ({"data": 5}, {}, "it has int where records should be; correct records"),
        (GOOD, {"field": "text"}, "has no field 'text' but 'version', 'title', 'context', 'id', 'question', 'answers'"),
        (GOOD, {"kind": "jsonl"}, "records is 'data.paragraphs.qas', but kind is jsonl; leave it out"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(contents: Any, source: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_evaluation_set(config_of(tmp_path, contents, source=source), _with_roles(), tmp_path / "cache",
                             objective=OBJECTIVE)  # fmt: skip
    assert words in str(caught.value)


def test_no_json_at_all(tmp_path: Path) -> None:
    config = config_of(tmp_path, [])
    (tmp_path / "questions.json").write_text('{"data": [}')
    with pytest.raises(UserError, match=r"cannot read .*questions\.json: not JSON"):
        build_evaluation_set(config, _with_roles(), tmp_path / "cache", objective=OBJECTIVE)


def test_every_window_once() -> None:
    """Over all lengths: windows begin a stride apart, and none begins behind the end of the last one that is needed."""
    made = OBJECTIVE.build(_with_roles(), 30, 0)
    for question in (1, 5, 80):
        for size in range(60):
            windows = made.windows(np.arange(question), np.arange(size))
            room = 27 - len(windows[0].question)
            assert all(len(window.tokens) <= room for window in windows)
            assert {int(token) for window in windows for token in window.tokens} == set(range(size))
            assert len(windows) == 1 or windows[-2].first + room < size


def _with_roles() -> Tokenizer:
    known = BytesTokenizer()
    known.special = {**known.special, "cls": 3, "sep": 4, "pad": 5}
    return known
