"""Rows of two answers side by side, each behind its prompt: what objectives that compare answers share."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.document import Document
from data_pipeline.objectives.objective import LABELS, Arrays, Objective, ObjectiveSettings, stack
from data_pipeline.objectives.packing import DocumentPacker, OpenPacker, Sample, value_of
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import pad_token, text_frame

CUT_PROMPT = "prompts cut at their beginning"
CUT_ANSWER = "answers cut at their end"
_SHOWN = 60
"""Most characters of a value that a message shows."""


class AnswersSettings(ObjectiveSettings):
    """What objectives that compare answers have in common. Sources have the prompt as `field`, and name the fields of
    the answers in `fields`."""

    end_prompt: bool = False
    """Whether the end-of-document token stands between prompt and answer, as objective seq2seq with concatenate has it;
    otherwise the answer continues the prompt's document."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """What to do about a prompt and answer of more than data.sequence_length tokens. truncate: the beginning of the
    prompt is cut off (the same for both answers), and where an answer alone is too long, its end; both are counted.
    refuse: stop with its place."""

    @property
    def least_length(self) -> int:
        return 3

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("pad",)


class Text(NamedTuple):
    """A prompt with an answer, as the model reads them."""

    inputs: np.ndarray
    """(n,) int32."""
    targets: np.ndarray
    """(n,) int32: the token behind each input."""
    first: int
    """The first input that belongs to the answer, as all later ones do: that which its first token is predicted from,
    or that token itself."""


class Answers(Objective):
    """Each record is one sample: a row of two halves of data.sequence_length tokens, which do not see each other and
    both count their positions from 0. The arrays have `labels.NAME`, (C, 2 * sequence_length), 1 at inputs from which
    a token of an answer is predicted, its end token included; without `ahead` at the answer's own tokens."""

    config: AnswersSettings
    unit = "document"
    length = 0
    ahead = 1
    """Tokens at the end of a text that are no inputs: 1 where each input is to predict the next token."""

    def __init__(self, config: AnswersSettings, tokenizer: Tokenizer, sequence_length: int) -> None:
        self.config = config
        self.sequence_length = sequence_length
        self.eos = self._end = tokenizer.special["eos"]
        self._tokenizer = tokenizer
        self._pad = pad_token(tokenizer)
        begin, end = text_frame(tokenizer, source=config.end_prompt)
        self._begin = np.array(begin, dtype=np.int32)
        self._between = np.array(end if config.end_prompt else [], dtype=np.int32)

    @property
    def targets_per_sample(self) -> int:
        return 1

    def packer(self) -> OpenPacker:
        return lambda documents, token, _: DocumentPacker(documents, token, self.sample)

    @abstractmethod
    def answers(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """The two texts of a record's values, which `problem` has found to be right."""

    def labels(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Other labels of a record, by name."""
        return {}

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        names, length = self.config.stored.values, self.sequence_length
        values = [dict(zip(names, map(value_of, sample.values), strict=True)) for sample in samples]
        pairs = [
            self.texts(sample.tokens, *self.answers(each))[0] for sample, each in zip(samples, values, strict=True)
        ]
        halves = [text for pair in pairs for text in pair]
        inputs = stack([text.inputs for text in halves], length, self._pad)
        targets = stack([text.targets for text in halves], length, self._pad)
        place, sizes = np.arange(length), np.array([[len(text.inputs)] for text in halves])
        learned = (place >= np.array([[text.first] for text in halves])) & (place < sizes)
        segments = np.where(place < sizes, np.arange(len(halves))[:, None] % 2, -1).astype(np.int32)
        rows = (len(samples), 2 * length)
        others = [self.labels(each) for each in values]
        return {
            "inputs": inputs.reshape(rows),
            "targets": targets.reshape(rows),
            # A sample counts once, whatever the length of its answers.
            "weights": np.ones((len(samples), 1), dtype=np.float32),
            "segment_ids": segments.reshape(rows),
            "positions": np.tile(place.astype(np.int32), (len(samples), 2)),
            f"{LABELS}{self.config.name}": learned.astype(np.int8).reshape(rows),
            **{f"{LABELS}{name}": np.array([each[name] for each in others], dtype=np.int64) for name in others[0]},
        }

    def checked(
        self, documents: Iterable[Document], place: Callable[[Document], str], counts: Counter[str] | None = None
    ) -> Iterator[Document]:
        for document in super().checked(documents, place, counts):
            _, cut = self.texts(np.array(self._tokenizer.encode(document.text)), *self.answers(document.values or {}))
            if cut and self.config.too_long == "refuse":
                raise UserError(
                    f"{place(document)}: the prompt with its longer answer is longer than data.sequence_length"
                    f" ({self.sequence_length} tokens); raise that, shorten the record, or set"
                    f" objective.too_long=truncate"
                )
            if counts is not None:
                counts.update(cut)
            yield document

    def texts(self, prompt: np.ndarray, *answers: str) -> tuple[list[Text], list[str]]:
        """The prompt with each of the answers, and what of them was cut."""
        room = self.sequence_length + self.ahead
        found = [np.append(ids, self._end).astype(np.int32) for ids in self._tokenizer.encode_batch(list(answers))]
        around = len(self._begin) + len(self._between)
        left = room - around - max(map(len, found))
        kept = prompt[len(prompt) - max(0, min(left, len(prompt))) :]
        head = np.concatenate([self._begin, kept, self._between]).astype(np.int32)
        if not len(head):
            head = np.array([self._end], dtype=np.int32)
        whole = [np.concatenate([head, answer])[:room] for answer in found]
        cut = [CUT_PROMPT] if len(kept) < len(prompt) else []
        cut += [CUT_ANSWER for answer in found if len(head) + len(answer) > room]
        return [
            Text(tokens[: len(tokens) - self.ahead], tokens[self.ahead :], len(head) - self.ahead) for tokens in whole
        ], cut

    def require_text(self, values: Mapping[str, Any], name: str) -> str | None:
        """What is wrong with the text of a field, as `problem` says it."""
        value = values.get(name)
        if value is None:
            return f"the record has no {name} answer; give it one, or leave the record out"
        if not isinstance(value, str):
            return f"the {name} answer is {written(value)}, but must be a text; correct the record"
        if not value or value.isspace():
            return f"the {name} answer is empty; give it a text, or leave the record out"
        return None


class Pairs(Answers):
    """Records of a prompt with a better and a worse answer: `chosen` in the first half, `rejected` in the second."""

    def answers(self, values: Mapping[str, Any]) -> tuple[str, str]:
        return values["chosen"], values["rejected"]

    def problem(self, values: Mapping[str, Any]) -> str | None:
        wrong = self.require_text(values, "chosen") or self.require_text(values, "rejected")
        if wrong is None and values["chosen"] == values["rejected"]:
            return (
                f"chosen and rejected are the same text ({written(values['chosen'])}), so that neither is preferred;"
                f" correct the record, or leave it out"
            )
        return wrong


def written(value: Any) -> str:
    """A value as messages show it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
