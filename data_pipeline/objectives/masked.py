"""Masked language modelling, alone or with next-sentence prediction (BERT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data_pipeline.base.random import as_uniforms, seeds_of, split_mix, uniforms
from data_pipeline.objectives.objective import LABELS, Arrays, Objective, ObjectiveSettings, Share
from data_pipeline.objectives.packing import OpenPacker, Sample, SentencePairPacker, WindowPacker
from data_pipeline.tokenizer import Tokenizer

ROLES = ("cls", "sep", "mask", "pad")


class MaskedObjective(ObjectiveSettings):
    """Hidden tokens from both sides (BERT; Devlin et al. 2019, section 3.1)."""

    decides = ("next_sentence",)
    name: Literal["masked"] = "masked"
    """Hidden tokens."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of the tokens to predict."""
    mask_share: Share = 0.8
    """Of those, the fraction replaced by the mask token."""
    random_share: Share = 0.1
    """Of those, the fraction replaced by a random token; the others stay as they are."""
    whole_words: bool = False
    """Choose whole words rather than single tokens."""
    next_sentence: bool = False
    """Samples are two parts of one document, or of two documents, and the model tells which (next sentence prediction).
    Otherwise samples are packed from whole documents."""
    short_rate: Share = 0.1
    """With next_sentence: the fraction of samples that are made shorter than data.sequence_length, by any amount."""

    @property
    def least_length(self) -> int:
        return 5 if self.next_sentence else 3

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ROLES

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Masked:
        return Masked(self, tokenizer, sequence_length, seed)


class Masked(Objective):
    """`[CLS] tokens [SEP]`, or `[CLS] A [SEP] B [SEP]`, in sequence_length tokens; some of the text is hidden."""

    config: MaskedObjective

    def __init__(self, config: MaskedObjective, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.unit = "sentences" if config.next_sentence else "window"
        self.short_rate = config.short_rate
        self.sequence_length = sequence_length
        self.length = sequence_length - (3 if config.next_sentence else 2)
        self.eos = tokenizer.special["eos"]
        self._cls, self._sep, self._mask, self._pad = (tokenizer.special[role] for role in ROLES)
        special = np.zeros(tokenizer.vocab_size, dtype=bool)
        special[list(tokenizer.special.values())] = True
        self._special = special
        self._ordinary = np.flatnonzero(~special).astype(np.int32)
        self._begin_words = tokenizer.begin_words
        self._changed_share = config.mask_share + config.random_share

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
        originals, sizes = self._framed(samples)
        inputs, weights = self._hide(originals, sizes, numbers)
        place = np.arange(self.sequence_length)
        filled = place < sizes[:, None]
        arrays = {
            "inputs": inputs,
            "targets": originals,
            "weights": weights,
            "encoder_weights": filled.astype(np.float32),
        }
        if self.config.next_sentence:
            first = np.array([sample.split + 2 for sample in samples])
            arrays["segment_ids"] = ((place >= first[:, None]) & filled).astype(np.int8)
            arrays[f"{LABELS}next_sentence"] = np.array([sample.label for sample in samples])
        return arrays

    def _framed(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) rows with their marks, padded, and how much of each is no padding."""
        rows: np.ndarray = np.full((len(samples), self.sequence_length), self._pad, dtype=np.int32)
        rows[:, 0] = self._cls
        sizes = np.empty(len(samples), dtype=np.int64)
        for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
            parts: tuple[np.ndarray, ...] = (sample.tokens,)
            if sample.split >= 0:
                parts = sample.tokens[: sample.split], sample.tokens[sample.split :]
            end = 1
            for part in parts:
                row[end : end + len(part)] = part
                row[end + len(part)] = self._sep
                end += len(part) + 1
            sizes[number] = end
        return rows, sizes

    def _hide(self, rows: np.ndarray, sizes: np.ndarray, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) rows of `sizes` tokens with some of their text hidden, and weights: 1 where it is to be predicted."""
        text = ~self._special.take(rows)
        words = np.array([np.count_nonzero(row) for row in text])
        counts = np.where(words > 0, np.maximum(1, np.round(self.config.rate * words)), 0).astype(np.int64)
        if self.config.whole_words:
            places, taken = self._choose_words(rows, text, counts, numbers)
        else:
            places, taken = self._choose(text, sizes, counts, numbers), counts
        # Numbers 1, 2, ... of a row decide the fate of its chosen tokens, those after them the token instead.
        seeds = np.repeat(seeds_of([("hide", self.seed, k) for k in numbers]), taken)
        order = np.arange(len(places)) - np.repeat(np.cumsum(taken) - taken, taken) + 1
        fate = as_uniforms(split_mix(seeds, order))
        swapped = np.flatnonzero((fate >= self.config.mask_share) & (fate < self._changed_share))
        which = as_uniforms(split_mix(seeds[swapped], order[swapped] + np.repeat(taken, taken)[swapped]))
        hidden, weights = rows.copy(), np.zeros(rows.shape, dtype=np.float32)
        hidden.reshape(-1)[places[fate < self.config.mask_share]] = self._mask
        hidden.reshape(-1)[places[swapped]] = self._ordinary[(which * len(self._ordinary)).astype(np.int64)]
        weights.reshape(-1)[places] = 1
        return hidden, weights

    def _choose(self, text: np.ndarray, sizes: np.ndarray, counts: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """Places among all B * T, row by row, of `counts` tokens of each row's text, every set as likely as any other.

        They are those that an endless sequence of random places hits first; how much of it is drawn decides nothing.
        """
        batch, length = text.shape
        seeds = seeds_of([("mask", self.seed, k) for k in numbers])[:, None]
        drawn = int(1.25 * counts.max()) + 16
        while True:
            order = np.arange(drawn)
            places = (as_uniforms(split_mix(seeds, order)) * sizes[:, None]).astype(np.int64)
            places += np.arange(batch)[:, None] * length
            # Of the values that are written to one place the last stays: that of its first hit. NumPy writes in this
            # order where the index is one row in memory; it turns reversed views around again.
            first = np.empty(batch * length, dtype=np.int32)
            first[np.flip(places).flatten()] = np.tile(order[::-1], batch)
            hit = (first[places] == order) & text.reshape(-1)[places]
            found = np.cumsum(hit, axis=1)
            if (found[:, -1] >= counts).all():
                return places[hit & (found <= counts[:, None])]
            drawn *= 2

    def _choose_words(
        self, rows: np.ndarray, text: np.ndarray, counts: np.ndarray, numbers: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places among all B * T of whole words of each row, and how many there are in each."""
        chosen = np.zeros(text.shape, dtype=bool)
        for number, k in enumerate(numbers):
            if counts[number]:
                places = np.flatnonzero(text[number])
                chosen[number, self._words(rows[number], places, int(counts[number]), k)] = True
        return np.flatnonzero(chosen), chosen.sum(axis=1)

    def _words(self, row: np.ndarray, text: np.ndarray, count: int, k: int) -> np.ndarray:
        """Whole words in random order, passing over those that would exceed `count` tokens; at least one word."""
        starts = self._begin_words(row[text])
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
