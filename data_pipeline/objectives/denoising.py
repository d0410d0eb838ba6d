"""T5's span corruption: spans are cut out, a sentinel stands for each, and the model gives the spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data_pipeline.base.random import choose_each
from data_pipeline.objectives.objective import Arrays, Objective, ObjectiveSettings, decoder_inputs
from data_pipeline.objectives.packing import OpenPacker, Sample, WindowPacker
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import pad_token, start_token


class DenoisingObjective(ObjectiveSettings):
    """The spans that were cut out of a text (T5; Raffel et al. 2020, section 3.1.4); for encoder-decoder models."""

    name: Literal["denoising"] = "denoising"
    """Spans that were cut out."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of the tokens that are cut out."""
    mean_span: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a cut span, in tokens."""

    fills_gaps = True

    @property
    def least_length(self) -> int:
        return 3

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        """pad, and as many sentinels as a sample can need; never fewer than T5's hundred."""
        _, spans = noise(self, window_length(self, sequence_length))
        return ("pad", *(f"sentinel_{i}" for i in range(max(100, spans))))

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Denoising:
        return Denoising(self, tokenizer, sequence_length, seed)


class Denoising(Objective):
    """Windows long enough that what is left of them fills exactly sequence_length tokens of the encoder.

    With S sentinels, n of L tokens cut out: the encoder reads L - n + S + 1 tokens, the decoder gives n + S + 1
    (Raffel et al. 2020, section 3.1.4; each ends with eos).
    """

    unit = "window"

    config: DenoisingObjective

    def __init__(self, config: DenoisingObjective, tokenizer: Tokenizer, sequence_length: int, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.sequence_length = sequence_length
        self.length = window_length(config, sequence_length)
        cut, spans = noise(config, self.length)
        self.target_length = cut + spans + 1
        self._sentinels = np.array([tokenizer.special[f"sentinel_{i}"] for i in range(spans)], dtype=np.int32)
        self._eos = tokenizer.special["eos"]
        self._pad = pad_token(tokenizer)
        self._start = start_token(tokenizer)

    @property
    def targets_per_sample(self) -> int:
        return self.target_length

    def packer(self) -> OpenPacker:
        return lambda documents, token, _: WindowPacker(documents, token, self.length, self.overlap)

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        encoder: np.ndarray = np.full((len(samples), self.sequence_length), self._pad, dtype=np.int32)
        targets: np.ndarray = np.full((len(samples), self.target_length), self._pad, dtype=np.int32)
        sizes = np.array([len(sample.tokens) for sample in samples])
        given, wanted = np.empty_like(sizes), np.empty_like(sizes)
        # Windows of a stream all have one length, those at the end of a file have their own.
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size).tolist()
            left, right = self._cut(np.stack([samples[row].tokens for row in rows]), [numbers[row] for row in rows])
            for out, ends, part in ((encoder, given, left), (targets, wanted, right)):
                length = part.shape[1]
                out[rows, :length], out[rows, length], ends[rows] = part, self._eos, length + 1
        return {
            "encoder_inputs": encoder,
            "encoder_weights": (np.arange(self.sequence_length) < given[:, None]).astype(np.float32),
            # The decoder starts from the pad token, as T5's does, or that of an imported model.
            "inputs": decoder_inputs(targets, self._start),
            "targets": targets,
            "weights": (np.arange(self.target_length) < wanted[:, None]).astype(np.float32),
        }

    def _cut(self, tokens: np.ndarray, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the encoder reads, and what the decoder gives, of (B, L) tokens: (B, S) and (B, T), both without eos."""
        batch, length = tokens.shape
        cut, spans = noise(self.config, length)
        kept = length - cut
        if min(cut, kept) == 0:
            return tokens, tokens[:, :0]
        # Kept and cut segments take turns, a kept one first.
        keeps = _segments(kept, spans, [("spans", self.seed, k, 0) for k in numbers])
        cuts = _segments(cut, spans, [("spans", self.seed, k, 1) for k in numbers])
        turns = np.stack([keeps, cuts], axis=2).reshape(-1)
        noisy = np.repeat(np.tile([False, True], batch * spans), turns)
        # A sentinel takes the place of each cut span's first token in the inputs, and of the last token before the span
        # in the targets.
        first = np.cumsum(turns)[::2].reshape(batch, spans)
        return (
            self._with_sentinels(tokens, ~noisy, first).reshape(batch, kept + spans),
            self._with_sentinels(tokens, noisy, first - 1).reshape(batch, cut + spans),
        )

    def _with_sentinels(self, tokens: np.ndarray, kept: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Of (B, L) tokens those that are `kept` (B * L), with sentinels at the (B, spans) `places` among all B * L."""
        marked = tokens.flatten()
        marked[places] = self._sentinels[: places.shape[1]]
        kept[places] = True
        return marked[np.flatnonzero(kept)]


def noise(config: DenoisingObjective, length: int) -> tuple[int, int]:
    """(tokens to cut out, spans) of a window of `length` tokens."""
    if length < 2:
        return 0, 0
    cut = min(max(round(length * config.rate), 1), length - 1)
    spans = min(max(round(cut / config.mean_span), 1), cut, length - cut)
    return cut, spans


def window_length(config: DenoisingObjective, sequence_length: int) -> int:
    """The longest window of which, spans cut out, at most `sequence_length` tokens are left for the encoder."""

    def left(length: int) -> int:
        cut, spans = noise(config, length)
        return length - cut + spans + 1

    length = sequence_length - 1
    while left(length + 1) <= sequence_length:
        length += 1
    return length


def _segments(total: int, parts: int, keys: Sequence[tuple[int | str, ...]]) -> np.ndarray:
    """(len(keys), parts): `total` cut into `parts` positive lengths, every such cut as likely as any other."""
    cuts = choose_each(parts - 1, total - 1, keys) + 1
    return np.diff(cuts, prepend=0, append=total, axis=1)
