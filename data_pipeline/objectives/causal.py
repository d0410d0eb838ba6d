"""Causal language modelling: windows of the packed stream, each token predicted from those before it (GPT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipeline.base.random import uniforms
from data_pipeline.objectives.objective import Arrays, ObjectiveSettings, Share, stack
from data_pipeline.objectives.packing import Sample
from data_pipeline.objectives.windows import Windows
from data_pipeline.tokenizer import Tokenizer

FIM_ROLES = ("fim_prefix", "fim_middle", "fim_suffix")


class CausalObjective(ObjectiveSettings):
    """The next token (GPT)."""

    name: Literal["causal"] = "causal"
    """The next token."""
    separate_documents: bool = False
    """Whether the documents packed into one sample are kept apart: tokens see their own document only, and positions
    start again with each."""
    fim_rate: Share = 0.0
    """Fraction of the documents' parts that are rearranged so that the model learns to fill in their middle (Bavarian
    et al. 2022). The three marks that it takes push out as many tokens at the sample's end."""
    fim_suffix_first_rate: Share = 0.5
    """Of those, the fraction with the suffix in front of the prefix (SPM), the rest with the prefix in front (PSM)."""

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return FIM_ROLES if self.fim_rate else ()

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Causal:
        return Causal(self, tokenizer, sequence_length, seed)

    def evaluated(self) -> CausalObjective:
        return self.model_copy(update={"fim_rate": 0.0})


class Causal(Windows):
    """Next-token prediction, with documents kept apart or rearranged where the settings ask for it."""

    config: CausalObjective

    def __init__(self, config: CausalObjective, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        super().__init__(tokenizer, sequence_length)
        self.config = config
        self.seed = seed
        self.plain = not config.fim_rate and not config.separate_documents and not self.frame.begin
        self._marks = np.array([tokenizer.special[role] for role in config.roles(sequence_length)], dtype=np.int32)
        self._eos = tokenizer.special["eos"]

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        if not self.config.fim_rate and not self.config.separate_documents:
            return self.rows([sample.tokens for sample in samples])
        parts = [self._parts(sample, k) for sample, k in zip(samples, numbers, strict=True)]
        arrays = self.rows([np.concatenate(part)[: self.length] for part in parts])
        if self.config.separate_documents:
            # An input belongs to the document of its target: the eos before a document is that one's first input. Only
            # where a document begins with a token of its own, it belongs to its own document.
            first = 0 if self.frame.begin else 1
            segments = [_numbers([len(piece) for piece in part], first)[: self.length - 1] for part in parts]
            arrays["segment_ids"] = stack(segments, self.length - 1, fill=-1)
            arrays["positions"] = np.stack([_restarts(row) for row in arrays["segment_ids"]])
        return arrays

    def _parts(self, sample: Sample, k: int) -> list[np.ndarray]:
        """The tokens of each document's part, rearranged where its lot says so."""
        edges = np.cumsum([piece.length for piece in sample.pieces])[:-1]
        parts = np.split(sample.tokens, edges)
        if not self.config.fim_rate:
            return parts
        draws = uniforms(4 * len(parts), "fim", self.seed, k).reshape(-1, 4)
        return [self._rearranged(part, *draw) for part, draw in zip(parts, draws, strict=True)]

    def _rearranged(self, part: np.ndarray, chosen: float, order: float, *cuts: float) -> np.ndarray:
        """prefix, middle, suffix with their marks: Bavarian et al. 2022, sections 3 and 3.1 (SPM as in appendix D)."""
        head, tail = int(part[0] == self._eos), len(part) - int(part[-1] == self._eos)
        if len(self._begin) and np.array_equal(part[: len(self._begin)], self._begin):
            head = len(self._begin)
        text = part[head:tail]
        if chosen >= self.config.fim_rate or len(text) < 2:
            return part
        first, second = sorted(int(cut * (len(text) + 1)) for cut in cuts)
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        begin, mid, end = self._marks[:, None]
        if order < self.config.fim_suffix_first_rate:
            moved = [begin, end, suffix, mid, prefix, middle]
        else:
            moved = [begin, prefix, end, suffix, mid, middle]
        return np.concatenate([part[:head], *moved, part[tail:]])


def _numbers(lengths: list[int], first: int) -> np.ndarray:
    """The number of each token's document, from 0: of the targets (`first` 1), or of the inputs (0)."""
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    numbers = numbers[first : len(numbers) - 1 + first]
    return numbers - numbers[0]


def _restarts(segments: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... starting again wherever the number changes."""
    place = np.arange(len(segments), dtype=np.int32)
    starts = np.concatenate([[True], segments[1:] != segments[:-1]])
    return place - np.maximum.accumulate(np.where(starts, place, 0))
