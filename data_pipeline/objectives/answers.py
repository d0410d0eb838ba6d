"""Rows of two answers side by side, each behind its prompt: what objectives that compare answers share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.document import Document
from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.labels import written
from data_pipeline.objectives.objective import LABELS, Arrays, ObjectiveSettings, stack
from data_pipeline.objectives.packing import Sample, value_of
from data_pipeline.reading.dialogue import TRAINING_DATE, ChatTemplate, chat_template
from data_pipeline.reading.messages import Message, merged_system, read_messages
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.chat_files import BUILT_IN, ChatTemplates
from data_pipeline.tokenizer.frame import text_frame

CUT_PROMPT = "prompts cut at their beginning"
CUT_ANSWER = "answers cut at their end"


class AnswersSettings(ObjectiveSettings):
    """What objectives that compare answers have in common. Sources have the prompt as `field`, and name the fields of
    the answers in `fields`; or a layout of dialogues, which the tokenizer's chat template reads."""

    end_prompt: bool = False
    """Whether the end-of-document token stands between prompt and answer, as objective seq2seq with concatenate has it;
    otherwise the answer continues the prompt's document. Chat templates have their own way."""
    system: Literal["keep", "merge"] = "keep"
    """Of dialogues. keep: the system message has a turn of its own; merge: it stands in front of the first user's, for
    templates that know no system (Gemma)."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """What to do about a prompt and answer of more than data.sequence_length tokens. truncate: the beginning of the
    prompt is cut off (the same for both answers), and where an answer alone is too long, its end; both are counted.
    refuse: stop with its place."""

    @property
    def least_length(self) -> int:
        return 3

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("pad",)


class Read(NamedTuple):
    """A prompt and answers to it as the model reads them."""

    begin: int
    """Tokens at the beginning of the prompt that are never cut off."""
    prompt: list[int]
    answers: list[list[int]]
    """Each with its end token."""


class Answers(ByDocument):
    """Each record is one sample: a row of two halves of data.sequence_length tokens, which do not see each other and
    both count their positions from 0. The arrays have `labels.NAME`, (C, 2 * sequence_length), 1 at inputs from which
    a token of an answer is predicted, its end token included; without `ahead` at the answer's own tokens."""

    config: AnswersSettings
    ahead = 1
    """Tokens at the end of a text that are no inputs: 1 where each input is to predict the next token."""
    names: tuple[str, ...]
    """Fields of a record that hold an answer."""

    def __init__(self, config: AnswersSettings, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        begin, end = text_frame(tokenizer, source=config.end_prompt)
        self._begin, self._between = begin, end if config.end_prompt else []
        self._template: ChatTemplate | None = None
        kept = (tokenizer.chat or ChatTemplates({})).templates
        decides = [kept, BUILT_IN, TRAINING_DATE, sequence_length, self.ahead, config.model_dump(mode="json")]
        self.form = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def marked(self, labels: Mapping[str, np.ndarray], size: int) -> np.ndarray | None:
        return labels[self.config.name]

    def labels(self, values: Mapping[str, Any]) -> dict[str, int]:
        """Other labels of what is stored of a record, by name."""
        return {}

    def halves(self, values: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The tokens of both answers, of what is stored of a record."""
        first, second = (values[name] for name in self.names)
        return first, second

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        names, length = self.config.stored.values, self.sequence_length
        values = [dict(zip(names, map(value_of, sample.values), strict=True)) for sample in samples]
        prompts = np.repeat([len(sample.tokens) for sample in samples], 2)[:, None]
        texts = [
            np.concatenate([sample.tokens, np.array(answer, dtype=np.int32)])[: length + self.ahead]
            for sample, each in zip(samples, values, strict=True)
            for answer in self.halves(each)
        ]
        inputs = stack([text[: len(text) - self.ahead] for text in texts], length, self.pad)
        targets = stack([text[self.ahead :] for text in texts], length, self.pad)
        place, sizes = np.arange(length), np.array([[len(text) - self.ahead] for text in texts])
        learned = (place >= prompts - self.ahead) & (place < sizes)
        segments = np.where(place < sizes, np.arange(len(texts))[:, None] % 2, -1).astype(np.int32)
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
        """The documents with their tokens as they are stored: of the prompt as `tokens`, of the answers as values."""
        for document in super().checked(documents, place, counts):
            values = document.values or {}
            try:
                read, cut = self._fitting(self.read(document.text, values))
            except (ValueError, UserError) as error:
                raise UserError(f"{place(document)}: {error}") from None
            if counts is not None:
                counts.update(cut)
            answers = dict(zip(self.names, read.answers, strict=True))
            yield document._replace(tokens=np.array(read.prompt, dtype=np.int32), values={**values, **answers})

    def read(self, prompt: str, values: Mapping[str, Any]) -> Read:
        """A record's prompt and answers, of any length.

        Raises:
            ValueError: a message of the prompt is none; says why.
            UserError: the chat template does not read the dialogue.
        """
        answers = [values[name] for name in self.names]
        if "messages" in values:
            return self._read_dialogue(values["messages"], answers)
        first, *others = (ids.tolist() for ids in map(np.asarray, self.tokenizer.encode_batch([prompt, *answers])))
        head = [*self._begin, *first, *self._between] or [self.eos]
        return Read(len(self._begin), head, [[*ids, self.eos] for ids in others])

    def _read_dialogue(self, messages: Any, answers: list[str]) -> Read:
        if self._template is None:
            self._template, _ = chat_template(self.tokenizer)
        # Only the answers are learned.
        turns = [replace(message, weight=0.0) for message in read_messages(messages)]
        if self.config.system == "merge":
            turns = merged_system(turns)
        head: list[int] = []
        found = []
        for answer in answers:
            read = self._template.read([*turns, Message("assistant", answer)], {"assistant": 1.0})
            before = sum(run.tokens for run in read.runs if not run.weight)
            head, tokens = read.tokens[:before].tolist(), read.tokens[before:].tolist()
            found.append(tokens)
        return Read(0, head, found)

    def _fitting(self, read: Read) -> tuple[Read, list[str]]:
        """What has room in half a row, and what of it was cut."""
        room = self.sequence_length + self.ahead
        longest = max(map(len, read.answers))
        over = len(read.prompt) + longest - room
        if over <= 0:
            return read, []
        if self.config.too_long == "refuse":
            raise UserError(
                f"the prompt with its longest answer has {room + over} tokens, but data.sequence_length is"
                f" {self.sequence_length}; raise that, shorten the record, or set objective.too_long=truncate"
            )
        begin = read.prompt[: read.begin]
        # Something must stand in front of an answer's first token.
        rest = read.prompt[read.begin :]
        kept = max(len(rest) - over, 0 if begin else 1)
        prompt = [*begin, *rest[len(rest) - kept :]]
        answers = [answer[: room - len(prompt)] for answer in read.answers]
        cut = [CUT_PROMPT] if kept < len(rest) else []
        cut += [CUT_ANSWER for answer, whole in zip(answers, read.answers, strict=True) if len(answer) < len(whole)]
        return Read(read.begin, prompt, answers), cut

    def require_text(self, values: Mapping[str, Any], name: str) -> str | None:
        """What is wrong with the text of a field, as `problem` says it."""
        value = values.get(name)
        if value is None:
            return f"the record has no {name} answer; give it one, or leave the record out"
        if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
            return (
                f"the {name} answer is {len(value)} messages ({written(value)}) after the prompt, but must be one of"
                f" the assistant, and dialogues that hold the prompt must begin with the same one; correct the record"
            )
        if not isinstance(value, str):
            return f"the {name} answer is {written(value)}, but must be a text; correct the record"
        if not value or value.isspace():
            return f"the {name} answer is empty; give it a text, or leave the record out"
        return None


class Pairs(Answers):
    """Records of a prompt with a better and a worse answer: `chosen` in the first half, `rejected` in the second."""

    names = ("chosen", "rejected")

    def problem(self, values: Mapping[str, Any]) -> str | None:
        wrong = self.require_text(values, "chosen") or self.require_text(values, "rejected")
        if wrong is None and values["chosen"] == values["rejected"]:
            return (
                f"chosen and rejected are the same text ({written(values['chosen'])}), so that neither is preferred;"
                f" correct the record, or leave it out"
            )
        return wrong
