"""Pairs of texts: a target from a source (translation, summarisation, instruction data)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.objective_config import PairsObjective
from data_pipeline.objectives.objective import Arrays, Objective, decoder_inputs, filled, stack
from data_pipeline.packing import OpenPacker, PairPacker, Sample
from data_pipeline.tokenizer import Tokenizer


class Pairs(Objective):
    """Each pair is one sample. Texts that are too long are cut at their end."""

    unit = "pair"
    length = 0
    roles = ("pad",)

    def __init__(self, config: PairsObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        self.config = config
        self.sequence_length = sequence_length
        self.eos = tokenizer.special["eos"]
        self._eos = np.array([self.eos], dtype=np.int32)
        self._pad = tokenizer.special["pad"]

    @property
    def targets_per_sample(self) -> int:
        return self.config.target_length

    def packer(self) -> OpenPacker:
        return lambda documents, token, _: PairPacker(documents, token)

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        sources = [self._cut(s.tokens[: s.split], self.sequence_length) for s in samples]
        targets = [self._cut(s.tokens[s.split :], self.config.target_length) for s in samples]
        return self._one_sequence(sources, targets) if self.config.concatenate else self._two(sources, targets)

    def _cut(self, tokens: np.ndarray, length: int) -> np.ndarray:
        return np.concatenate([tokens[: length - 1], self._eos])

    def _two(self, sources: list[np.ndarray], targets: list[np.ndarray]) -> Arrays:
        padded = stack(targets, self.config.target_length, self._pad)
        return {
            "encoder_inputs": stack(sources, self.sequence_length, self._pad),
            "encoder_weights": filled(sources, self.sequence_length),
            "inputs": decoder_inputs(padded, self._pad),
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
            "tokens": stack(rows, length + 1, self._pad),
            "weights": predicted.astype(np.float32),
        }
