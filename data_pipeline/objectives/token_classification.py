"""Token classification: a label of each word or character of a text, such as the entity that it is a part of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import field_validator, model_validator

from data_pipeline.base.tags import Scheme, breaks, is_tag, spelled
from data_pipeline.document import Document
from data_pipeline.objectives.framed import Framed, FramedSettings
from data_pipeline.objectives.labels import output_of, written
from data_pipeline.objectives.objective import LABELS, Arrays, filled, stack
from data_pipeline.objectives.packing import Sample, Stored, value_of
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.units import UnitTokens, characters, encode_units, words

NAME = "token_classification"
"""Of the objective and of its head."""
NOTHING = -1
"""In place of a label where nothing is predicted."""
_UNITS = {"words": words, "characters": characters}


class TokenClassificationObjective(FramedSettings):
    """Labels of the words or characters of a text; the model reads its tokens, none of which is part of two of them.
    Sources name the fields: `fields: {tokens: NAME, tags: NAME}` for lists of words and of their labels, with the text
    in `field` (that of the words too, with `join`), or `fields: {spans: NAME}` with `given: spans`."""

    name: Literal["token_classification"] = "token_classification"
    """Labels of words or characters."""
    labels: list[str]
    """The labels, in the order of the head's outputs. Records hold them, or their places in this list."""
    scheme: Scheme = "bio"
    """What the labels are. bio: O, B-TYPE and I-TYPE; iobes: E-TYPE and S-TYPE too; none: labels of their own, such as
    parts of speech. Texts whose tags break the scheme are kept, and counted."""
    given: Literal["tags", "spans"] = "tags"
    """tags: records hold words, and a label for each; spans: they hold a list of entities, each `[start, end, TYPE]` or
    `{start: , end: , label: }` in characters of the text, end exclusive."""
    units: Literal["words", "characters"] = "words"
    """With given spans, what is labelled. words: runs of letters and digits, signs, and the single characters of
    scripts without spaces, such as Han; characters: each, with its marks."""
    pieces: Literal["first", "all"] = "first"
    """Which tokens of a unit are predicted: first: its first one; all: each, with the unit's label."""
    overflow: Literal["window", "truncate", "refuse"] = "window"
    """What is done about a text that is longer than `data.sequence_length`; all but refuse is counted. window: it is
    cut between units into several samples; truncate: its end is left out."""

    @field_validator("labels")
    @classmethod
    def _labels_apart(cls, labels: list[str]) -> list[str]:
        if len(labels) < 2:
            raise ValueError(f"labels is {labels}, but there must be two to choose from; name the labels of the data")
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise ValueError(f"labels has {twice[0]!r} {labels.count(twice[0])} times; name each label once")
        return labels

    @model_validator(mode="after")
    def _labels_of_the_scheme(self) -> TokenClassificationObjective:
        odd = [label for label in self.labels if not is_tag(label, self.scheme)]
        if odd:
            raise ValueError(
                f"labels has {odd[0]!r}, which is no tag of scheme {self.scheme}; correct it, or set scheme=none"
            )
        return self

    @property
    def least_length(self) -> int:
        return 3

    @property
    def stored(self) -> Stored:
        return Stored(values=("labels",), made_of=("tokens", "tags") if self.given == "tags" else ("spans",))

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any]:
        return {"name": NAME, "outputs": len(self.labels), "pooling": "each", **self.form_of_head(transform)}

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> TokenClassification:
        return TokenClassification(self, tokenizer, sequence_length)


class TokenClassification(Framed):
    """Each text is a sample, or each part of one that is too long: `[CLS] text [SEP]`, or a text that ends with eos."""

    config: TokenClassificationObjective

    def __init__(self, config: TokenClassificationObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        self.size = sequence_length - len(self.begin) - len(self.end)
        """Most tokens of the text in a sample."""
        self._outputs = {label: output for output, label in enumerate(config.labels)}

    @property
    def targets_per_sample(self) -> int:
        return self.sequence_length

    def examples(self, document: Document, counts: Counter[str]) -> list[Document]:
        units = self._units(document.text, document.values or {})
        tokens = encode_units(self.tokenizer, document.text, [(start, end) for start, end, _ in units])
        labels = np.array([label for _, _, label in units], dtype=np.int64)
        lost = int((tokens.firsts < 0).sum())
        if lost:
            counts["words that become no token"] += lost
        if breaks([self.config.labels[label] for label in labels], self.config.scheme):
            counts["text whose tags break the scheme"] += 1
        wanted = np.full(len(tokens.ids), NOTHING, dtype=np.int64)
        if self.config.pieces == "all":
            wanted[tokens.units >= 0] = labels[tokens.units[tokens.units >= 0]]
        else:
            known = tokens.firsts >= 0
            wanted[tokens.firsts[known]] = labels[known]
        parts = windows(tokens, self.size)
        if len(parts) > 1:
            if self.config.overflow == "refuse":
                raise ValueError(
                    f"the text has {len(tokens.ids)} tokens, but data.sequence_length has room for {self.size}; raise"
                    f" it, or set objective.overflow=window"
                )
            if self.config.overflow == "truncate":
                counts["too long text cut off"] += 1
                parts = parts[:1]
            else:
                counts["too long text read in parts"] += 1
        return [
            document._replace(tokens=tokens.ids[first:last], values={"labels": wanted[first:last].tolist()})
            for first, last in parts
        ]

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        rows = [np.concatenate([self.begin, sample.tokens[: self.size], self.end]) for sample in samples]
        padding_mask = filled(rows, self.sequence_length)
        labels = np.full(padding_mask.shape, NOTHING, dtype=np.int64)
        for row, sample in zip(labels, samples, strict=True):
            own = value_of(sample.values[0])[: self.size]
            row[len(self.begin) : len(self.begin) + len(own)] = own
        arrays = {
            "inputs": stack(rows, self.sequence_length, self.pad),
            "targets": np.zeros(padding_mask.shape, dtype=np.int8),
            "weights": (labels >= 0).astype(np.float32),
            "encoder_weights": padding_mask,
            f"{LABELS}{NAME}": labels,
        }
        if self.config.special_tokens == "cls":
            arrays["segment_ids"] = np.zeros(padding_mask.shape, dtype=np.int8)
        return arrays

    def _units(self, text: str, values: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """(start, end, label) in characters of what is labelled.

        Raises:
            ValueError: the record is wrong; says why, and what to do.
        """
        if self.config.given == "spans":
            return self._of_spans(text, values.get("spans"))
        tokens, tags = values.get("tokens"), values.get("tags")
        for name, value in (("tokens", tokens), ("tags", tags)):
            if not isinstance(value, list):
                raise ValueError(f"{name} is {written(value)}, but must be a list; correct the record")
        if len(tokens) != len(tags):  # type: ignore[arg-type]
            raise ValueError(
                f"there are {len(tokens)} tokens and {len(tags)} tags; give each token one tag"  # type: ignore[arg-type]
            )
        labels = [self._output(tag) for tag in tags]  # type: ignore[union-attr]
        places = located(text, tokens)  # type: ignore[arg-type]
        return [(start, end, label) for (start, end), label in zip(places, labels, strict=True)]

    def _of_spans(self, text: str, spans: Any) -> list[tuple[int, int, int]]:
        if not isinstance(spans, list):
            raise ValueError(f"spans is {written(spans)}, but must be a list of entities; correct the record")
        units = _UNITS[self.config.units](text)
        kinds: list[str | None] = [None] * len(units)
        begins = [False] * len(units)
        starts = {start: number for number, (start, _) in enumerate(units)}
        ends = {end: number for number, (_, end) in enumerate(units)}
        for span in spans:
            start, end, kind = _entity(span, text)
            if start not in starts or end not in ends:
                fix = "correct it" if self.config.units == "characters" else "correct it, or set units=characters"
                raise ValueError(
                    f"the entity {text[start:end][:40]!r} at {start} to {end} begins or ends inside of one of the"
                    f" {self.config.units}; {fix}"
                )
            covered = range(starts[start], ends[end] + 1)
            taken = [number for number in covered if kinds[number] is not None]
            if taken:
                raise ValueError(
                    f"the entity {text[start:end][:40]!r} at {start} to {end} covers what another one has; leave out"
                    f" one of the two"
                )
            for number in covered:
                kinds[number] = kind
            begins[starts[start]] = True
        tags = spelled(kinds, begins, self.config.scheme)
        return [(start, end, self._output(tag)) for (start, end), tag in zip(units, tags, strict=True)]

    def _output(self, value: Any) -> int:
        if type(value) is int and 0 <= value < len(self.config.labels):
            return value
        return output_of(value, self._outputs, "a tag")


def located(text: str, tokens: Sequence[Any]) -> list[tuple[int, int]]:
    """[start, end) of each of the words of a text, in characters.

    Raises:
        ValueError: one is no text, or does not stand behind the one before it.
    """
    places, end = [], 0
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            raise ValueError(f"token {number} is {written(token)}, but must be a text; correct the record")
        start = text.find(token, end)
        if start < 0:
            raise ValueError(
                f"token {number}, {token[:40]!r}, does not stand in the text behind character {end}; name the field of"
                f" the tokens as the source's field, or leave out the cleaning step that changes texts"
            )
        end = start + len(token)
        places.append((start, end))
    return places


def windows(tokens: UnitTokens, room: int) -> list[tuple[int, int]]:
    """[first, last) of the parts of a text that have room, cut between units where one is not longer than that."""
    count = len(tokens.ids)
    inside = np.zeros(count + 1, dtype=bool)
    inside[1:count] = (tokens.units[1:] == tokens.units[:-1]) & (tokens.units[1:] >= 0)
    parts, first = [], 0
    while count - first > room:
        last = first + room
        while last > first and inside[last]:
            last -= 1
        last = last if last > first else first + room
        parts.append((first, last))
        first = last
    return [*parts, (first, count)]


def _entity(span: Any, text: str) -> tuple[int, int, str]:
    found = [span.get(name) for name in ("start", "end", "label")] if isinstance(span, dict) else span
    if not (
        isinstance(found, list)
        and len(found) == 3
        and type(found[0]) is type(found[1]) is int
        and isinstance(found[2], str)
    ):
        raise ValueError(f"an entity is {written(span)}, but must be [start, end, TYPE]; correct the record")
    start, end, kind = found
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"an entity is at {start} to {end}, but the text has {len(text)} characters; correct the record"
        )
    return start, end, kind
