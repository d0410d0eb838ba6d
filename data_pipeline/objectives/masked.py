"""Masked language modelling, alone or with next-sentence prediction (BERT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.counter_random import uniforms
from data_pipeline.objective_config import MaskedObjective
from data_pipeline.objectives.objective import Arrays, Objective, filled, stack
from data_pipeline.packing import OpenPacker, Sample, SentencePairPacker, WindowPacker
from data_pipeline.tokenizer import Tokenizer


class Masked(Objective):
    """`[CLS] tokens [SEP]`, or `[CLS] A [SEP] B [SEP]`, in sequence_length tokens; some of the text is hidden."""

    roles = ("cls", "sep", "mask", "pad")

    def __init__(self, config: MaskedObjective, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.unit = "sentences" if config.next_sentence else "window"
        self.short_rate = config.short_rate
        self.sequence_length = sequence_length
        self.length = sequence_length - (3 if config.next_sentence else 2)
        self._cls, self._sep, self._mask, self._pad = (tokenizer.special[role] for role in self.roles)
        special = np.zeros(tokenizer.vocab_size, dtype=bool)
        special[list(tokenizer.special.values())] = True
        self._special = special
        self._ordinary = np.flatnonzero(~special).astype(np.int32)
        self._word_starts = tokenizer.word_starts

    @property
    def targets_per_sample(self) -> int:
        return max(1, round(self.config.rate * self.length))

    def packer(self) -> OpenPacker:
        if self.config.next_sentence:
            return lambda documents, token, key: SentencePairPacker(
                documents, token, self.length, self.config.short_rate, key
            )
        return lambda documents, token, _: WindowPacker(documents, token, self.length, self.overlap)

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        originals = [self._frame(sample) for sample in samples]
        rows = [self._hide(row, k) for row, k in zip(originals, numbers, strict=True)]
        inputs, weights = zip(*rows, strict=True)
        arrays = {
            "inputs": stack(inputs, self.sequence_length, self._pad),
            "targets": stack(originals, self.sequence_length, self._pad),
            "weights": stack(weights, self.sequence_length, dtype=np.float32),
            "encoder_weights": filled(originals, self.sequence_length),
        }
        if self.config.next_sentence:
            first = np.array([sample.split + 2 for sample in samples])
            sizes = np.array([len(row) for row in originals])
            place = np.arange(self.sequence_length)
            arrays["segment_ids"] = ((place >= first[:, None]) & (place < sizes[:, None])).astype(np.int8)
            arrays["next_sentence_labels"] = np.array([sample.label for sample in samples])
        return arrays

    def _frame(self, sample: Sample) -> np.ndarray:
        if sample.split < 0:
            return np.concatenate([[self._cls], sample.tokens, [self._sep]]).astype(np.int32)
        first, second = sample.tokens[: sample.split], sample.tokens[sample.split :]
        return np.concatenate([[self._cls], first, [self._sep], second, [self._sep]]).astype(np.int32)

    def _hide(self, row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The row with some of its text hidden, and weight 1 where it is to be predicted."""
        text = np.flatnonzero(~self._special[row])
        weights = np.zeros(len(row), dtype=np.float32)
        if not len(text):
            return row, weights
        count = max(1, round(self.config.rate * len(text)))
        chosen = self._choose_words(row, text, count, k) if self.config.whole_words else self._choose(text, count, k)
        weights[chosen] = 1
        fate, which = uniforms(2 * len(chosen), "hide", self.seed, k).reshape(2, -1)
        hidden = row.copy()
        hidden[chosen[fate < self.config.mask_share]] = self._mask
        swapped = (fate >= self.config.mask_share) & (fate < self.config.mask_share + self.config.random_share)
        hidden[chosen[swapped]] = self._ordinary[(which[swapped] * len(self._ordinary)).astype(np.int64)]
        return hidden, weights

    def _choose(self, text: np.ndarray, count: int, k: int) -> np.ndarray:
        draws = uniforms(len(text), "mask", self.seed, k)
        return text[np.argpartition(draws, count - 1)[:count]]

    def _choose_words(self, row: np.ndarray, text: np.ndarray, count: int, k: int) -> np.ndarray:
        """Whole words in random order, passing over those that would exceed `count` tokens; at least one word."""
        starts = self._word_starts[row[text]]
        # What follows a special token begins a word too, whatever piece it is.
        starts[0] = True
        starts[1:] |= np.diff(text) > 1
        words = np.cumsum(starts) - 1
        sizes = np.bincount(words).tolist()
        order = np.argsort(uniforms(len(sizes), "mask", self.seed, k), kind="stable").tolist()
        picked: list[int] = []
        for word in order:
            if sizes[word] <= count:
                picked.append(word)
                count -= sizes[word]
                if count == 0:
                    break
        return text[np.isin(words, picked or order[:1])]
