"""Chat and instruction tuning: dialogues by the tokenizer's chat template, learned where the assistant speaks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.document import Document
from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.objective import Arrays, ObjectiveSettings
from data_pipeline.objectives.packing import Sample, Stored, value_of
from data_pipeline.objectives.rows import Part, rows_of
from data_pipeline.reading.dialogue import TRAINING_DATE, ReadDialogue, Run, chat_template
from data_pipeline.reading.messages import ROLES, merged_system, read_messages
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import document_frame

CUT = "dialogue longer than the context, cut"
"""Reasons that are counted."""
LEFT_OUT = "dialogue longer than the context, left out"
NOTHING_LEARNED = "dialogue cut before anything is learned, left out"
EMPTY_ANSWER = "dialogue with an empty answer"
TEXT = "text"
"""In `ChatObjective.weights`, what is no dialogue."""


class ChatObjective(ObjectiveSettings):
    """What the assistant says (supervised fine-tuning). Sources have a `layout` of dialogues, or name the field of the
    messages: `fields: {messages: NAME}`. The tokenizer's chat template says how they are read; where it has none, a
    simple one of ours, which the run keeps."""

    name: Literal["chat"] = "chat"
    """What the assistant says."""
    pack: bool = True
    """Whether dialogues share a row of data.sequence_length positions as far as they have room: each sees itself alone
    and begins at position 0."""
    too_long: Literal["truncate", "drop", "refuse"] = "truncate"
    """What becomes of a dialogue that is longer than data.sequence_length + 1 tokens. truncate: its end is cut off, and
    it is left out where nothing is learned before that; drop: it is left out; refuse: the run stops. What is cut or
    left out is counted."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {"assistant": 1.0}
    """How much each token of a turn counts, by the role of who speaks: `system`, `user`, `assistant` or `tool`; what is
    not named, nothing. The `weight` of a message comes first. With `text`, there may be sources without messages, such
    as those of pretraining (replay): each token of their documents is learned as causal LM learns it, with that weight.
    They are no part of held-out figures."""
    system: Literal["keep", "merge"] = "keep"
    """keep: the system message has a turn of its own; merge: it stands in front of the first user's, for templates that
    know no system (Gemma)."""
    reads_dialogues = True
    answers = "dialogue"

    @field_validator("weights")
    @classmethod
    def _known_roles(cls, weights: dict[str, float]) -> dict[str, float]:
        unknown = next((role for role in weights if role not in (*ROLES, TEXT)), None)
        if unknown is not None:
            known = ", ".join((*ROLES, TEXT))
            raise ValueError(f"weights names the role {unknown!r}, but roles are {known}; name one of them")
        if not any(weight for role, weight in weights.items() if role != TEXT):
            raise ValueError(f"weights is {weights}, so that nothing is learned; give the assistant a weight")
        return weights

    @property
    def least_length(self) -> int:
        return 2

    @property
    def stored(self) -> Stored:
        return Stored(values=("runs",))

    def evaluated(self) -> ChatObjective:
        return self.model_copy(update={"weights": {**self.weights, TEXT: 0.0}}) if TEXT in self.weights else self

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Chat:
        return Chat(self, tokenizer, sequence_length)


class Chat(ByDocument):
    """A dialogue, or several that have room in a row; or plain texts, where they are learned too."""

    config: ChatObjective

    def __init__(self, config: ChatObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        """Raises UserError where jinja2 is missing, which reads templates."""
        super().__init__(config, tokenizer, sequence_length)
        self.room = sequence_length if config.pack else 0
        self._frame = document_frame(tokenizer)
        self._template, source = chat_template(tokenizer)
        decides = [source, TRAINING_DATE, sequence_length, config.too_long, config.weights, config.system]
        self.form = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def targets_per_sample(self) -> int:
        return self.sequence_length

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        return lengths[:, 0] - 1

    def require(self, sources: Sequence[SourceConfig], where: str) -> None:
        for index, source in enumerate(sources):
            if source.about.is_tokenised:
                raise UserError(
                    f"objective.name is chat, but {where}.{index} has kind tokens, which do not say what is learned;"
                    f" name the files that the tokens are from"
                )
            if "messages" not in source.gives and TEXT not in self.config.weights:
                raise UserError(
                    f"objective.name is chat, but {where}.{index} does not say where the messages are; set its layout"
                    f" to auto, or its fields to {{messages: NAME}}, or objective.weights.text to learn plain text, too"
                )
        if sources and not any("messages" in source.gives for source in sources):
            raise UserError(
                f"objective.name is chat, but none of {where} has messages; name a source of dialogues, or set"
                f" objective.name=causal"
            )

    def checked(
        self, documents: Iterable[Document], place: Callable[[Document], str], counts: Counter[str] | None = None
    ) -> Iterator[Document]:
        counted: Counter[str] = Counter() if counts is None else counts
        for document in documents:
            if "messages" not in (document.values or {}):
                yield from self._texts(document)
                continue
            try:
                read = self._fitting(self._read(document.values or {}, counted), counted)
            except (ValueError, UserError) as error:
                raise UserError(f"{place(document)}: {error}") from None
            if read is not None:
                yield _stored(document, read.learned, read.tokens, read.runs)

    def target_tokens(self, arrays: Sequence[np.ndarray]) -> float:
        return sum(run.tokens * run.weight for run in _runs(arrays[1]))

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        rows = [self._parts(sample) for sample in samples]
        return rows_of(rows, self.sequence_length, self.pad, apart=self.config.pack)

    def turns(self, sample: Sample) -> list[str]:
        return [f"{run.role} {run.tokens}" for stored in sample.values for run in _runs(stored) if run.weight]

    def _parts(self, sample: Sample) -> list[Part]:
        ends = np.cumsum([piece.length for piece in sample.pieces])
        parts = []
        for tokens, stored in zip(np.split(sample.tokens, ends[:-1]), sample.values, strict=True):
            runs = _runs(stored)
            weights = np.repeat(np.array([run.weight for run in runs], np.float32), [run.tokens for run in runs])
            parts.append(Part(tokens, weights))
        return parts

    def _texts(self, document: Document) -> Iterator[Document]:
        """The parts of a plain text, each of at most a row. A part begins with the last token of the one before, so
        that every token is learned once."""
        weight = self.config.weights.get(TEXT, 0.0)
        ids = self.tokenizer.encode(document.text) if weight else []
        if not ids:
            return
        before = [*self._frame.lead, *self._frame.begin]
        tokens = np.array([*before, *ids, *self._frame.end], dtype=np.int32)
        for first in range(0, max(1, len(tokens) - 1), self.sequence_length):
            part = tokens[first : first + self.sequence_length + 1]
            known = min(max(1, len(before) - first), len(part))
            runs = [Run(known, 0.0), Run(len(part) - known, weight, TEXT)]
            whole = len(part) == len(tokens)
            yield _stored(document, document.text if whole else self.tokenizer.decode(part[known:]), part, runs)

    def _read(self, values: Mapping[str, Any], counted: Counter[str]) -> ReadDialogue:
        messages = read_messages(values.get("messages"))
        if any(each.role == "assistant" and not each.text.strip() for each in messages):
            counted[EMPTY_ANSWER] += 1
        if self.config.system == "merge":
            messages = merged_system(messages)
        read = self._template.read(messages, self.config.weights)
        if not any(run.weight for run in read.runs):
            roles = ", ".join(role for role, weight in self.config.weights.items() if weight)
            raise ValueError(
                f"the dialogue has no turn of {roles} with a weight, so that nothing is learned of it; add one, or"
                f" leave the record out"
            )
        return read

    def _fitting(self, read: ReadDialogue, counted: Counter[str]) -> ReadDialogue | None:
        """What has room in a row of the dialogue; None: it is left out, which is counted."""
        most = self.sequence_length + 1
        if len(read.tokens) <= most:
            return read
        if self.config.too_long == "refuse":
            raise UserError(
                f"the dialogue has {len(read.tokens)} tokens, but data.sequence_length is {self.sequence_length}; raise"
                f" it, or set objective.too_long to truncate or drop"
            )
        if self.config.too_long == "drop":
            counted[LEFT_OUT] += 1
            return None
        runs, left = [], most
        for run in read.runs:
            runs.append(run._replace(tokens=min(run.tokens, left)))
            left -= runs[-1].tokens
        runs = [run for run in runs if run.tokens]
        if not any(run.weight for run in runs):
            counted[NOTHING_LEARNED] += 1
            return None
        counted[CUT] += 1
        tokens, flags = read.tokens[:most], np.repeat([run.weight > 0 for run in runs], [run.tokens for run in runs])
        return read._replace(tokens=tokens, runs=runs, learned=self.tokenizer.decode(tokens[flags]))


def _stored(document: Document, learned: str, tokens: np.ndarray, runs: Iterable[Run]) -> Document:
    return document._replace(text=learned, values={"runs": [list(run) for run in runs]}, tokens=tokens)


def _runs(stored: np.ndarray) -> list[Run]:
    return [Run(*run) for run in value_of(stored)]
