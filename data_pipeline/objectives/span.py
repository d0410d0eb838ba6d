"""Extractive question answering: where in a passage the answer to a question stands, if it does (SQuAD)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from data_pipeline.document import Document
from data_pipeline.objectives.framed import Framed, FramedSettings
from data_pipeline.objectives.labels import written
from data_pipeline.objectives.objective import LABELS, Arrays, filled, read_twice, stack
from data_pipeline.objectives.packing import Sample, Stored, value_of
from data_pipeline.tokenizer import Tokenizer

NAME = "span"
"""Of the objective and of its head."""
NOWHERE = -1
_SHOWN = 40


class SpanObjective(FramedSettings):
    """The span of a passage that answers a question. A source's `field` is the passage, and `fields: {question: NAME,
    answers: NAME}` name the rest: answers as in SQuAD, with a `text` and an `answer_start` in characters each, in a
    list of objects or in an object of lists. The first one is learned."""

    name: Literal["span"] = "span"
    """Spans that answer questions."""
    unanswerable: bool = False
    """Whether records without an answer are allowed, as in SQuAD 2: an empty list of answers. The model then points at
    `[CLS]`, or at the last token with `special_tokens: eos`."""
    misplaced: Literal["refuse", "nearest"] = "refuse"
    """What is done about an answer that stands elsewhere than the record says, as some of CMRC 2018 do. nearest: the
    nearest place at which it stands is taken, and counted. One that stands nowhere is always refused."""
    question_length: int = Field(default=64, ge=1)
    """Most tokens of a question; a longer one is cut off, and counted."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens from the beginning of one window of a passage to that of the next; half of the room that there is where
    not given."""
    overflow: Literal["window", "truncate", "refuse"] = "window"
    """What is done about a passage that is longer than the room; all but refuse is counted. window: it is read in
    windows, each a sample, of which those without the whole answer have none; truncate: its end is left out."""

    @property
    def least_length(self) -> int:
        return 6

    @property
    def stored(self) -> Stored:
        return Stored(values=("span",), made_of=("question", "answers"))

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any]:
        return {"name": NAME, "outputs": 2, "pooling": "each", **self.form_of_head(transform)}

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Span:
        return Span(self, tokenizer, sequence_length)


class Window(NamedTuple):
    """A part of a passage that is read with the question."""

    question: np.ndarray
    """(Q,) int32."""
    first: int
    """First token of the passage in it."""
    tokens: np.ndarray
    """(P,) int32: those of the passage."""


class Span(Framed):
    """Each window of each passage is a sample: `[CLS] question [SEP] passage [SEP]`, or both followed by eos."""

    config: SpanObjective

    def __init__(self, config: SpanObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        self._size = sequence_length - len(self.begin) - len(self.between) - len(self.end)

    @property
    def targets_per_sample(self) -> int:
        return 1

    def windows(self, question: np.ndarray, passage: np.ndarray) -> list[Window]:
        """All windows of a passage, by the ids of its tokens and of the question's, of which at most a half of the room
        is taken."""
        question = question[: max(1, min(self.config.question_length, self._size // 2))].astype(np.int32)
        room = self._size - len(question)
        step = min(self.config.stride or -(-room // 2), room)
        last = max(0, len(passage) - room)
        firsts = range(0, last + step if last else 1, step)
        return [Window(question, first, passage[first : first + room].astype(np.int32)) for first in firsts]

    def row(self, question: np.ndarray, passage: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The tokens of a sample, the place of the passage's first one, and the place that stands for no answer."""
        begun = np.concatenate([self.begin, question, self.between])
        row = np.concatenate([begun, passage, self.end])
        return row, len(begun), 0 if self.config.special_tokens == "cls" else len(row) - 1

    def examples(self, document: Document, counts: Counter[str]) -> list[Document]:
        values = document.values or {}
        question = values.get("question")
        if not isinstance(question, str):
            raise ValueError(f"the question is {written(question)}, but must be a text; correct the record")
        if not question.strip():
            counts["empty question"] += 1
            return []
        answer = self._answer(document.text, values.get("answers"), question, counts)
        ids = np.array(self.tokenizer.encode(question), dtype=np.int32)
        passage, spans = self.tokenizer.encode_with_spans(document.text)
        found = (NOWHERE, NOWHERE) if answer is None else tokens_of(document.text, spans, *answer)
        if answer is not None and found[0] < 0:
            counts["answer that becomes no token"] += 1
            return []
        windows = self.windows(ids, passage)
        if len(windows[0].question) < len(ids):
            counts["question cut off"] += 1
        if len(windows) > 1:
            windows = self._within_rule(windows, len(passage), counts)
        return [
            document._replace(
                tokens=np.concatenate([window.question, window.tokens]),
                values={"span": [len(window.question), *within(found, window)]},
            )
            for window in windows
        ]

    def marked(self, labels: Mapping[str, np.ndarray], size: int) -> np.ndarray | None:
        start, end = labels[NAME]
        return (np.arange(size) >= start) & (np.arange(size) <= end)

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        rows, passages, labels = [], [], []
        for sample in samples:
            split, start, end = value_of(sample.values[0])
            row, first, nowhere = self.row(sample.tokens[:split], sample.tokens[split:])
            rows.append(row)
            passages.append(first)
            labels.append([nowhere] * 2 if start < 0 else [first + start, first + end])
        padding_mask = filled(rows, self.sequence_length)
        arrays = {
            "inputs": stack(rows, self.sequence_length, self.pad),
            "targets": np.zeros((len(rows), 1), dtype=np.int8),
            "weights": np.ones((len(rows), 1), dtype=np.float32),
            "encoder_weights": padding_mask,
            f"{LABELS}{NAME}": np.array(labels, dtype=np.int64),
        }
        if self.config.special_tokens == "decoder":
            arrays |= read_twice(arrays["inputs"], self.tokenizer)
        if self.config.special_tokens == "cls":
            second = np.arange(self.sequence_length) >= np.array(passages)[:, None]
            arrays["segment_ids"] = (second & (padding_mask > 0)).astype(np.int8)
        return arrays

    def _within_rule(self, windows: list[Window], size: int, counts: Counter[str]) -> list[Window]:
        if self.config.overflow == "refuse":
            raise ValueError(
                f"the passage has {size} tokens, but data.sequence_length has room for {len(windows[0].tokens)} beside"
                f" the question; raise it, or set objective.overflow=window"
            )
        if self.config.overflow == "truncate":
            counts["too long passage cut off"] += 1
            return windows[:1]
        counts["too long passage read in windows"] += 1
        return windows

    def _answer(self, passage: str, answers: Any, question: str, counts: Counter[str]) -> tuple[int, int] | None:
        """[start, end) in characters of the first answer; None: there is none.

        Raises:
            ValueError: it is wrong; says why, and what to do.
        """
        found = listed(answers)
        if found is None:
            raise ValueError(f"answers is {written(answers)}, but must be as in SQuAD; correct the record")
        asked = f"question {question[:_SHOWN]!r}"
        if not found:
            if self.config.unanswerable:
                return None
            raise ValueError(f"{asked} has no answer; set objective.unanswerable=true, or leave the record out")
        if self.config.misplaced == "nearest":
            placed = [(text, _nearest(passage, text, start)) for text, start in found]
            if placed[0] != found[0]:
                counts["answer that stands elsewhere"] += 1
            found = placed
        for text, start in found:
            if not isinstance(text, str) or not text.strip() or type(start) is not int:
                raise ValueError(
                    f"{asked} has the answer {written(text)} at {written(start)}, but needs a text and the number of"
                    f" its first character; correct the record"
                )
            if start < 0 or passage[start : start + len(text)] != text:
                place = passage.find(text)
                fix = f"it stands at {place}" if place >= 0 else "it stands nowhere in it"
                raise ValueError(
                    f"{asked} has the answer {text[:_SHOWN]!r} at {start}, where the passage has"
                    f" {passage[max(0, start) : max(0, start) + len(text)][:_SHOWN]!r}; {fix}, correct the record"
                )
        text, start = found[0]
        return start, start + len(text)


def listed(answers: Any) -> list[tuple[Any, Any]] | None:
    """(text, first character) of each of SQuAD's answers, written as a list of objects, or as an object of lists; None
    where they are written otherwise."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return None
        return list(zip(texts, starts, strict=True))
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        return None
    return [(answer.get("text"), answer.get("answer_start")) for answer in answers]


def _nearest(passage: str, text: Any, start: Any) -> Any:
    """The place nearest to `start` at which a text stands; `start` where there is none, or where it is no place."""
    if not isinstance(text, str) or not text or type(start) is not int:
        return start
    before, behind = passage.rfind(text, 0, max(0, start) + len(text)), passage.find(text, max(0, start))
    places = [place for place in (before, behind) if place >= 0]
    return min(places, key=lambda place: abs(place - start)) if places else start


def tokens_of(text: str, spans: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The first and last token with bytes of the characters [start, end) of a text; -1 where there is none.

    Args:
        spans: (T, 2) in bytes, as of `Tokenizer.encode_with_spans`.
    """
    low = len(text[:start].encode())
    high = low + len(text[start:end].encode())
    own = np.flatnonzero((spans[:, 0] < high) & (spans[:, 1] > low) & (spans[:, 0] < spans[:, 1]))
    return (int(own[0]), int(own[-1])) if len(own) else (NOWHERE, NOWHERE)


def within(found: tuple[int, int], window: Window) -> tuple[int, int]:
    """The same by the tokens of a window; -1 where it does not hold all of it."""
    start, end = found[0] - window.first, found[1] - window.first
    return (start, end) if found[0] >= 0 and start >= 0 and end < len(window.tokens) else (NOWHERE, NOWHERE)
