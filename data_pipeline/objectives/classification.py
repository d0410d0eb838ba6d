"""Sequence classification: one label of each text or pair of texts, several, or numbers (regression)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.labels import output_of, written
from data_pipeline.objectives.objective import LABELS, Arrays, ObjectiveSettings, filled, read_twice, stack
from data_pipeline.objectives.packing import Sample, Stored, value_of
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import PairFrame, pair_frame

NAME = "classification"
"""Of the objective and of its head."""
_LABEL = "the label"
_LOSSES = {"single_label": "cross_entropy", "multi_label": "binary_cross_entropy", "regression": "squared_error"}
"""The head's loss by problem."""


class ClassificationObjective(ObjectiveSettings):
    """Labels of a text, or of a pair of texts. Sources name the field of the label: `fields: {label: NAME}`. Texts that
    are too long are cut, of a pair the longer one first."""

    name: Literal["classification"] = "classification"
    """Labels of texts."""
    labels: list[str]
    """The labels, in the order of the head's outputs; for a regression what its numbers are called."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """single_label: one of the labels is right, and records hold it; multi_label: any of them, and records hold a list;
    regression: records hold a number for each (or one number, where there is one)."""
    pairs: bool = False
    """Whether each record is a pair of texts, the second one in the `target_field` of its source."""
    pooling: Literal["first", "last", "mean", "decoder"] = "first"
    """Whose hidden state the head sees: first: that of `[CLS]`, for encoders (BERT); last: that of the last token, for
    decoders (GPT-2); mean: the mean over the tokens; decoder: the last one of the decoder, which reads the text once
    more, for encoder-decoders (T5)."""
    pooler: bool | None = None
    """A dense layer and tanh before the projection (BERT, RoBERTa, T5); where not given, with pooling first and decoder
    where there is no `transform`."""
    transform: bool | None = None
    """A dense layer, the model's activation and its norm before the projection; where not given, as the class of the
    model's family has it (ModernBERT's has), without a pooler."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of that vector dropped in training."""

    later = ("pairs",)

    @field_validator("labels")
    @classmethod
    def _labels_apart(cls, labels: list[str]) -> list[str]:
        if not labels:
            raise ValueError("labels is empty, but the head has an output for each; name the labels of the data")
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise ValueError(f"labels has {twice[0]!r} {labels.count(twice[0])} times; name each label once")
        return labels

    @model_validator(mode="after")
    def _something_to_choose(self) -> ClassificationObjective:
        if self.problem == "single_label" and len(self.labels) < 2:
            raise ValueError(
                f"labels has {self.labels[0]!r} alone, but with problem=single_label there must be two to choose from;"
                f" name the others, or set problem=multi_label"
            )
        return self

    @model_validator(mode="after")
    def _one_layer_before(self) -> ClassificationObjective:
        if self.pooler and self.transform:
            raise ValueError("pooler and transform are both true, but a head has one of them; leave one out")
        return self

    @property
    def least_length(self) -> int:
        return 5 if self.pooling == "first" else 3

    @property
    def stored(self) -> Stored:
        return Stored(target=self.pairs, values=("label",))

    def around(self, tokenizer: Tokenizer) -> PairFrame:
        return pair_frame(tokenizer, cls=self.pooling == "first")

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("cls", "sep", "pad") if self.pooling == "first" else ("pad",)

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any]:
        transformed = (transform and not self.pooler) if self.transform is None else self.transform
        return {
            "name": NAME,
            "outputs": len(self.labels),
            "pooling": "last" if self.pooling == "decoder" else self.pooling,
            "pooler": self.pooling in ("first", "decoder") and not transformed if self.pooler is None else self.pooler,
            "transform": transformed,
            "bias": self.pooling != "last",
            "loss": _LOSSES[self.problem],
            "dropout": self.dropout,
        }

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Classification:
        return Classification(self, tokenizer, sequence_length)


def pooling_of(pooling: str, architecture: str) -> str:
    """`objective.pooling` of a head with `model.head.pooling` in a model of an architecture."""
    return "decoder" if architecture == "encoder_decoder" and pooling == "last" else pooling


class Classification(ByDocument):
    """Each text, or pair of texts, is one sample: `[CLS] text [SEP] second [SEP]`, or texts that each end with eos."""

    config: ClassificationObjective

    def __init__(self, config: ClassificationObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        frame = config.around(tokenizer)
        self._begin, self._between, self._end = (np.array(ids, dtype=np.int32) for ids in frame)
        self._outputs = {label: output for output, label in enumerate(config.labels)}
        self.closed_labels = config.problem != "regression"

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        rows, firsts = zip(*map(self._row, samples), strict=True)
        padding_mask = filled(rows, self.sequence_length)
        arrays = {
            "inputs": stack(rows, self.sequence_length, self.pad),
            "targets": np.zeros((len(rows), 1), dtype=np.int8),
            "weights": np.ones((len(rows), 1), dtype=np.float32),
            "encoder_weights": padding_mask,
            f"{LABELS}{NAME}": np.stack([self._label(value_of(sample.values[0])) for sample in samples]),
        }
        if self.config.pooling == "first":
            second = np.arange(self.sequence_length) >= np.array(firsts)[:, None]
            arrays["segment_ids"] = (second & (padding_mask > 0)).astype(np.int8)
        if self.config.pooling == "decoder":
            arrays |= read_twice(arrays["inputs"], self.tokenizer)
        return arrays

    def classes(self, sample: Sample) -> list[str]:
        label = self._label(value_of(sample.values[0]))
        outputs = np.flatnonzero(label) if self.config.problem == "multi_label" else [label]
        return [self.config.labels[int(output)] for output in outputs]

    def require(self, sources: Sequence[SourceConfig], where: str) -> None:
        super().require(sources, where)
        second = next((number for number, source in enumerate(sources) if "target" in source.gives), None)
        if second is not None and not self.config.pairs:
            raise UserError(
                f"{where}.{second} has pairs of texts, but objective.pairs is false; set it to true, or leave out what"
                f" names the second text"
            )

    def problem(self, values: Mapping[str, Any]) -> str | None:
        try:
            self._label(values.get("label"))
        except ValueError as error:
            return str(error)
        return None

    def is_cut(self, sample: Sample) -> bool:
        return len(sample.tokens) > self._room(pair=sample.split < len(sample.tokens))

    def _row(self, sample: Sample) -> tuple[np.ndarray, int]:
        """The tokens of a sample, and the place of the first one of the second text."""
        texts = [sample.tokens[: sample.split], sample.tokens[sample.split :]]
        pair = len(texts[1]) > 0
        sizes = _shortened([len(text) for text in texts], self._room(pair))
        first, second = (text[:size] for text, size in zip(texts, sizes, strict=True))
        begun = np.concatenate([self._begin, first, self._between if pair else self._end])
        return (np.concatenate([begun, second, self._end]) if pair else begun), len(begun)

    def _room(self, pair: bool) -> int:
        """Tokens of its texts that a row has room for."""
        return self.sequence_length - len(self._begin) - pair * len(self._between) - len(self._end)

    def _label(self, value: Any) -> np.ndarray:
        """A record's label as the head's loss takes it: a class, or a number for each output.

        Raises:
            ValueError: it is none; says why, and what to do.
        """
        if value is None or value == "":
            raise ValueError("the record has no label; give it one, or leave the record out")
        if self.config.problem == "regression":
            return self._numbers(value if isinstance(value, list) else [value])
        if self.config.problem == "single_label":
            return np.array(output_of(value, self._outputs, _LABEL), dtype=np.int64)
        if not isinstance(value, list):
            raise ValueError(f"the label is {written(value)}, but problem is multi_label; give a list of labels")
        chosen = np.zeros(len(self._outputs), dtype=np.float32)
        chosen[[output_of(each, self._outputs, _LABEL) for each in value]] = 1
        return chosen

    def _numbers(self, values: list[Any]) -> np.ndarray:
        try:
            numbers = [math.nan if isinstance(value, bool) else float(value) for value in values]
        except (TypeError, ValueError, OverflowError):
            numbers = []
        if len(numbers) != len(self._outputs) or not all(abs(number) < 3e38 for number in numbers):
            raise ValueError(
                f"the label is {written(values)}, but objective.labels asks for {len(self._outputs)} finite"
                f" number{'s' if len(self._outputs) > 1 else ''}; correct the record"
            )
        return np.array(numbers, dtype=np.float32)


def _shortened(sizes: list[int], room: int) -> list[int]:
    """Sizes of two texts that have room together: the longer one is cut first."""
    first, second = sizes
    over = max(0, first + second - room)
    cut = min(over, abs(first - second))
    first, second = (first - cut, second) if first > second else (first, second - cut)
    over -= cut
    return [first - (over + 1) // 2, second - over // 2] if second else [first - over, 0]
