"""Pairs of texts: a target from a source (translation, summarisation, instruction data)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.objective import Arrays, ObjectiveSettings, decoder_inputs, filled, stack
from data_pipeline.objectives.packing import Origins, Sample, Stored
from data_pipeline.objectives.rows import Part, rows_of
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import start_token, text_frame


class Seq2SeqObjective(ObjectiveSettings):
    """A target text from a source text: sources need `target_field`."""

    name: Literal["seq2seq"] = "seq2seq"
    """A target text from a source text."""
    target_length: Annotated[int, Field(gt=0)] = 128
    """Tokens that are kept of a target, its end token included. Sources are cut at data.sequence_length, likewise."""
    concatenate: bool = False
    """For decoders: source and target follow each other in one sample of data.sequence_length + target_length tokens,
    and only the target is predicted. Otherwise the source goes to an encoder."""
    pack: bool = False
    """With concatenate: whether pairs share a row as far as they have room. Each sees itself alone and begins at
    position 0."""

    later = ("pack",)
    answers = "source"

    @model_validator(mode="after")
    def _one_row(self) -> Seq2SeqObjective:
        if self.pack and not self.concatenate:
            raise ValueError(
                "pack is true, but only rows of a decoder are packed; set concatenate=true, or leave it out"
            )
        return self

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("pad",)

    @property
    def answer_length(self) -> int:
        return self.target_length

    @property
    def stored(self) -> Stored:
        return Stored(target=True)

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Seq2Seq:
        return Seq2Seq(self, tokenizer, sequence_length)


class Seq2Seq(ByDocument):
    """Each pair is one sample. Texts that are too long are cut at their end."""

    config: Seq2SeqObjective

    def __init__(self, config: Seq2SeqObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        begin, end = text_frame(tokenizer, source=True)
        # A target in one sequence with its source is no text of its own, so that nothing begins it.
        first, last = ([], [self.eos]) if config.concatenate else (begin, end)
        self._around_source, self._around_target = (
            (np.array(before, dtype=np.int32), np.array(behind, dtype=np.int32))
            for before, behind in ((begin, end), (first, last))
        )
        self.room = sequence_length + config.target_length - 1 if config.pack else 0
        self._start = self.pad if config.concatenate else start_token(tokenizer)

    @property
    def targets_per_sample(self) -> int:
        return self.room or self.config.target_length

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        rooms = (self.sequence_length, self.config.target_length)
        sizes = [
            np.minimum(lengths[:, part], max(0, room - around)) + around
            for part, room, around in zip(range(2), rooms, self._around, strict=True)
        ]
        return sizes[0] + sizes[1] - 1

    def sample(self, text: np.ndarray, others: Sequence[np.ndarray], origins: Origins) -> Sample:
        sample = super().sample(text, others, origins)
        # Of several pairs in a row, each has its own place where the target begins.
        return sample._replace(values=(np.array([sample.split]),)) if self.room else sample

    @property
    def _around(self) -> list[int]:
        """Special tokens of a source, and of a target."""
        return [sum(map(len, around)) for around in (self._around_source, self._around_target)]

    def is_cut(self, sample: Sample) -> bool:
        rooms = (self.sequence_length, self.config.target_length)
        return any(
            len(text) + around > room
            for pair in self._texts(sample)
            for text, around, room in zip(pair, self._around, rooms, strict=True)
        )

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        if self.room:
            rows = [[self._part(*pair) for pair in self._texts(sample)] for sample in samples]
            return rows_of(rows, self.room, self.pad, apart=True)
        sources = [_cut(s.tokens[: s.split], self.sequence_length, *self._around_source) for s in samples]
        targets = [_cut(s.tokens[s.split :], self.config.target_length, *self._around_target) for s in samples]
        return self._one_sequence(sources, targets) if self.config.concatenate else self._two(sources, targets)

    def _texts(self, sample: Sample) -> list[tuple[np.ndarray, np.ndarray]]:
        """Source and target of each pair in a sample."""
        if not self.room:
            return [(sample.tokens[: sample.split], sample.tokens[sample.split :])]
        ends = np.cumsum([piece.length for piece in sample.pieces])
        whole = zip(np.split(sample.tokens, ends[:-1]), sample.values, strict=True)
        return [(tokens[: int(split[0])], tokens[int(split[0]) :]) for tokens, split in whole]

    def _part(self, source: np.ndarray, target: np.ndarray) -> Part:
        first = _cut(source, self.sequence_length, *self._around_source)
        second = _cut(target, self.config.target_length, *self._around_target)
        weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(first), len(second)])
        return Part(np.concatenate([first, second]), weights)

    def _two(self, sources: list[np.ndarray], targets: list[np.ndarray]) -> Arrays:
        padded = stack(targets, self.config.target_length, self.pad)
        return {
            "encoder_inputs": stack(sources, self.sequence_length, self.pad),
            "encoder_weights": filled(sources, self.sequence_length),
            "inputs": decoder_inputs(padded, self._start),
            "targets": padded,
            "weights": filled(targets, self.config.target_length),
        }

    def _one_sequence(self, sources: list[np.ndarray], targets: list[np.ndarray]) -> Arrays:
        length = self.sequence_length + self.config.target_length
        rows = [np.concatenate(pair) for pair in zip(sources, targets, strict=True)]
        place = np.arange(1, length + 1)
        starts, ends = np.array([len(s) for s in sources]), np.array([len(row) for row in rows])
        predicted = (place >= starts[:, None]) & (place < ends[:, None])
        return {
            "tokens": stack(rows, length + 1, self.pad),
            "weights": predicted.astype(np.float32),
        }


def _cut(tokens: np.ndarray, length: int, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A text with its special tokens, of at most `length` tokens where that has room for them."""
    room = max(0, length - len(begin) - len(end))
    return np.concatenate([begin, tokens[:room], end])
