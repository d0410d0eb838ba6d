"""Texts to vectors, which depend on the model and the text alone.

As in evaluation (`llmscale.evaluate.batches`), a text is padded to a multiple of 16 tokens, and only texts of one
padded length share a batch: kernels choose the order of their sums by the shape of what they are given. On a CPU in
fp32 a vector is the same to the bit whatever else is in the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.base.encodings import is_unicode
from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import pad_token, whole_frame
from llmscale.model import Transformer
from llmscale.model.experts import filled_experts
from llmscale.model.pooling import pooled
from llmscale.model.stack import Stack

MULTIPLE = 16
"""Tokens; products of fewer rows are left to other kernels."""
POOLINGS = ("first", "last", "mean")


@dataclass(frozen=True)
class Settings:
    """What is made of a text's hidden states."""

    pooling: str | None = None
    """first, last or mean over the tokens, special ones included; None: as the model was trained, else mean."""
    layers: tuple[int, ...] = (-1,)
    """Whose hidden states, of several their mean: 0 is the embedding, 1 the first layer, -1 the last one with the norm
    after it."""
    normalize: bool | None = None
    """Vectors of length 1; None: as the model was trained, and of a language model yes."""
    overflow: Literal["truncate", "refuse"] = "truncate"
    """What becomes of texts that are longer than the context: cut at their end, or refused."""


class _Text(NamedTuple):
    ids: list[int]
    length: int
    """Padded, which depends on the text alone."""


class Embedder:
    """A trained model that gives vectors: an encoder, a decoder, or the encoder of an encoder-decoder."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, settings: Settings = Settings()) -> None:
        """
        Args:
            model: in evaluation mode.

        Raises:
            UserError: a pooling that there is none of or that says nothing in this model, or a layer that it lacks.
        """
        head = model.config.head
        trained = head.pooling if head is not None and head.pooling in POOLINGS else "mean"
        self.pooling = settings.pooling or trained
        self.normalize = settings.normalize if settings.normalize is not None else (head is None or head.normalize)
        self.cut = 0
        """Texts so far that were longer than the context."""
        self._model, self._tokenizer, self._overflow = model, tokenizer, settings.overflow
        self._stack: Stack = model.encoder if model.encoder is not None else model
        self._begin, self._end = whole_frame(tokenizer)
        self._pad = pad_token(tokenizer)
        self._layers = tuple(self._layer(layer) for layer in settings.layers)
        self._require_pooling()

    @property
    def channels(self) -> int:
        """Of a vector."""
        return self._model.config.hidden_size

    def embed(self, texts: Sequence[str], batch_size: int = 32, first: int = 0) -> np.ndarray:
        """(N, channels) float32: a vector for each text.

        Args:
            batch_size: most texts of a forward pass; no vector depends on it.
            first: number of the first text, for messages.

        Raises:
            UserError: a text that is no Unicode, or longer than the context where those are refused; or vectors that
                are not finite.
        """
        read = [self._read(text, first + number) for number, text in enumerate(texts)]
        by_shape: dict[tuple[int, bool], list[int]] = {}
        for number, (ids, length) in enumerate(read):
            by_shape.setdefault((length, len(ids) == length), []).append(number)
        found = np.empty((len(texts), self.channels), dtype=np.float32)
        for (length, full), numbers in sorted(by_shape.items(), reverse=True):
            for start in range(0, len(numbers), batch_size):
                some = numbers[start : start + batch_size]
                found[some] = self._vectors([read[number].ids for number in some], length, full)
        wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(wrong):
            raise UserError(
                f"the vector of text {first + int(wrong[0]) + 1} is not finite; look for weights that are not by"
                f" `llmscale checkpoint verify`, or give --dtype fp32"
            )
        return found

    @torch.inference_mode()
    def _vectors(self, rows: list[list[int]], length: int, full: bool) -> np.ndarray:
        device = next(self._model.parameters()).device
        inputs = torch.tensor([row + [self._pad] * (length - len(row)) for row in rows], device=device)
        sizes = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(length, device=device) < sizes[:, None]
        with filled_experts(self._model, MULTIPLE), self._watched() as seen:
            last = self._hidden(inputs, None if full else mask)
        states = {**seen, self._stack.depth: last}
        vectors = torch.stack([pooled(states[layer].float(), mask, self.pooling) for layer in self._layers]).mean(0)
        return (torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors).cpu().numpy()

    def _hidden(self, inputs: Tensor, padding_mask: Tensor | None) -> Tensor:
        if self._stack is not self._model:
            return self._model.encode(inputs, padding_mask)[0]
        # A decoder sees nothing of the padding, which comes after its text.
        return self._model(inputs, padding_mask=None if self._model.causal else padding_mask).hidden  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[dict[int, Tensor]]:
        """The hidden states of the layers that are asked for before the last, of what runs within the block."""
        seen: dict[int, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for layer in set(self._layers) - {self._stack.depth}:

                def before(module: Any, given: tuple[Any, ...], layer: int = layer) -> None:
                    seen[layer] = given[0]

                # What enters a layer left the one before.
                stack.callback(self._stack.blocks[layer].register_forward_pre_hook(before).remove)
            yield seen

    def _read(self, text: str, number: int) -> _Text:
        if not is_unicode(text):
            raise UserError(f"text {number + 1} has half of a character ({text[:40]!a}); write whole ones")
        most = self._model.config.max_positions
        ids = [*self._begin, *self._tokenizer.encode(text), *self._end]
        if len(ids) > most:
            if self._overflow == "refuse":
                raise UserError(
                    f"text {number + 1} has {len(ids)} tokens, but model.max_positions is {most}; shorten it, or give"
                    f" --overflow truncate"
                )
            self.cut += 1
            room = max(most - len(self._begin) - len(self._end), 0)
            ids = [*ids[: len(self._begin) + room], *self._end][:most]
        return _Text(ids, max(len(ids), min(-(-len(ids) // MULTIPLE) * MULTIPLE, most)))

    def _layer(self, layer: int) -> int:
        depth = self._stack.depth
        found = layer + depth + 1 if layer < 0 else layer
        if not 0 <= found <= depth:
            raise UserError(
                f"--layers has {layer}, but the model has the layers 0 (the embedding) to {depth}, or -1 (the last) to"
                f" {-depth - 1}; name some of them"
            )
        return found

    def _require_pooling(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"--pooling is {self.pooling!r}, but must be one of {', '.join(POOLINGS)}; name one")
        if self.pooling != "first":
            return
        if self._stack.causal:
            raise UserError(
                "--pooling is first, but the model is a decoder, whose first token sees no other; give last or mean"
            )
        if "cls" not in self._tokenizer.special:
            raise UserError(
                "--pooling is first, but the model's tokenizer has no [CLS], which stands first; give last or mean"
            )
