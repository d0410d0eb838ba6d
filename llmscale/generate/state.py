"""Sequences that grow token by token, all of one batch with one cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmscale.generate.prompts import Context
from llmscale.model import KeyValueCache, Transformer
from llmscale.model.experts import filled_experts

EXACT = 16
"""Lengths and numbers of rows from which on a row's products do not depend on how many there are: fewer rows are left
to other kernels, which round otherwise."""
_PROMPT_TOKENS = 4096
"""Of one forward pass over prompts, about."""


class State:
    """What a model has read so far of a batch of unequal prompts, shorter ones padded at their beginning."""

    def __init__(
        self, model: Transformer, contexts: Sequence[Context], room: int, copies: int = 1, padded: bool = False
    ) -> None:
        """
        Args:
            contexts: what is read first; all of one kind.
            room: most new tokens; the last of them is not read.
            copies: sequences that continue each context, one after the other.
            padded: whether all are padded to a multiple of `EXACT` tokens, and masked, whatever their lengths.
        """
        self.model = model
        parameter = next(model.parameters())
        self.device = parameter.device
        rows = [context.tokens for context in contexts]
        self._inputs, padding_mask = _filled(rows, self.device, left=True, padded=padded)
        length = self._inputs.shape[1]
        # More than max_positions where a context with much room is padded to one with little.
        capacity = length + room - 1
        self._cache = KeyValueCache(model.config, len(rows), capacity, parameter.dtype, self.device)
        self._positions: Tensor | None = None
        self._padding_mask: Tensor | None = None
        if padded or not bool(padding_mask.all()):
            self._positions = (padding_mask.cumsum(1) - 1).clamp(min=0)
            self._padding_mask = torch.ones(len(rows), capacity, dtype=torch.bool, device=self.device)
            self._padding_mask[:, :length] = padding_mask
        self._prefix: Tensor | None = None
        if contexts[0].prefix:
            self._prefix = torch.full((len(rows),), length, device=self.device)
        self._memory: Tensor | None = None
        self._memory_padding_mask: Tensor | None = None
        if contexts[0].source is not None:
            sources = [context.source or [] for context in contexts]
            source, source_mask = _filled(sources, self.device, left=False, padded=padded)
            if source.shape[1] > model.config.max_positions:  # all of them are shorter
                source, source_mask = (part[:, : model.config.max_positions] for part in (source, source_mask))
            self._memory_padding_mask = None if not padded and bool(source_mask.all()) else source_mask
            self._memory = model.encode(source, self._memory_padding_mask).hidden
        self._copies = copies

    def read(self) -> Tensor:
        """Read what has not been read yet: logits (B, V) of the token that follows each sequence."""
        hidden = self.advance()
        if self._copies == 1:
            return self.model.head(hidden)
        logits = self.model.head(hidden)
        rows = torch.arange(len(hidden), device=self.device).repeat_interleave(self._copies)
        self._copies = 1
        self.keep(rows)
        return logits[rows]

    def advance(self) -> Tensor:
        """Read what has not been read yet: hidden states (B, hidden_size) of each sequence's last token."""
        end = self._cache.length + self._inputs.shape[1]
        hidden = self.model(
            self._inputs,
            self._positions,
            prefix_lengths=self._prefix,
            padding_mask=None if self._padding_mask is None else self._padding_mask[:, :end],
            encoder_padding_mask=self._memory_padding_mask,
            memory=self._memory,
            cache=self._cache,
        ).hidden[:, -1]
        # From now on the cache has the encoder's result.
        self._prefix = self._memory = None
        if self._positions is not None:
            self._positions = self._positions[:, -1:]
        return hidden

    def append(self, tokens: Tensor) -> None:
        """(B,) tokens that each sequence goes on with, to be read next."""
        self._inputs = tokens[:, None]
        if self._positions is not None:
            # What has filled the context may stay in the batch, but is not read any more.
            self._positions = (self._positions + 1).clamp(max=self.model.config.max_positions - 1)

    def keep(self, rows: Tensor, *, same_prompt: bool = False) -> None:
        """Let sequence i continue what sequence rows[i] has read.

        Args:
            rows: (new batch,) int64.
            same_prompt: whether each sequence and the one that it replaces continue the same prompt.
        """
        self._cache.reorder(rows, memory=not same_prompt)
        if same_prompt:
            return
        self._inputs = self._inputs[rows]
        self._positions = None if self._positions is None else self._positions[rows]
        self._padding_mask = None if self._padding_mask is None else self._padding_mask[rows]
        self._memory_padding_mask = None if self._memory_padding_mask is None else self._memory_padding_mask[rows]


class ExactState(State):
    """Sequences none of which depends on the others, not even by rounding.

    Whatever decides how something is computed is decided by the sequence alone. Prompts are padded to a multiple of
    `EXACT` tokens, and read beside others of that length. They go on beside those of one `kept_length`, which is what
    their keys and values are padded to, so that most sequences can share a batch; it has `EXACT` rows at least.
    """

    def __init__(self, model: Transformer, contexts: Sequence[Context], room: int) -> None:
        """As of `State`; the contexts are of one `kept_length`. Rows behind theirs only fill the batch up."""
        self.model, self._copies = model, 1
        parameter = next(model.parameters())
        self.device = parameter.device
        count = len(contexts)
        rows = [*range(count), *[0] * (EXACT - count)]
        ((length, source_length),) = {kept_lengths(context) for context in contexts}
        source_length = min(source_length, model.config.max_positions)
        self._cache = KeyValueCache(model.config, len(rows), length + room - 1, parameter.dtype, self.device)
        hidden = []
        with filled_experts(model, EXACT):
            for numbers in _same_length(contexts):
                part = State(model, [contexts[number] for number in numbers], 1, padded=True)
                hidden.append((numbers, part.advance()))
                self._cache.adopt(numbers, part._cache, length, source_length)
        first = hidden[0][1].new_empty(count, hidden[0][1].shape[1])
        for numbers, states in hidden:
            first[numbers] = states
        self._first: Tensor | None = first[rows]
        self._cache.repeat_first(count)
        lengths = torch.tensor([len(contexts[row].tokens) for row in rows], device=self.device)[:, None]
        self._positions = lengths - 1
        self._padding_mask = torch.arange(length + room - 1, device=self.device) >= length - lengths
        self._prefix = self._memory = self._memory_padding_mask = None
        if contexts[0].source is not None:
            sources = torch.tensor([len(contexts[row].source or ()) for row in rows], device=self.device)[:, None]
            self._memory_padding_mask = torch.arange(source_length, device=self.device) < sources

    def read(self) -> Tensor:
        """As of `State`."""
        if self._first is not None:
            first, self._first = self._first, None
            return self.model.head(first)
        with filled_experts(self.model, EXACT):
            return super().read()


def _same_length(contexts: Sequence[Context]) -> Iterator[list[int]]:
    """Numbers of contexts that are padded to the same lengths, some at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, context in enumerate(contexts):
        lengths = filled_length(len(context.tokens)), filled_length(len(context.source or ()))
        groups.setdefault(lengths, []).append(number)
    for lengths, group in groups.items():
        numbers = iter(group)
        while some := list(itertools.islice(numbers, max(1, _PROMPT_TOKENS // sum(lengths)))):
            yield some


def seen_tokens(contexts: Sequence[Context], width: int, device: torch.device) -> Tensor:
    """(contexts, width) booleans: which tokens the decoder reads of each context."""
    seen = torch.zeros(len(contexts), width, dtype=torch.bool, device=device)
    for row, context in zip(seen, contexts, strict=True):
        row[context.tokens] = True
    return seen


def filled_length(length: int) -> int:
    """Tokens that a context is padded to where nothing may depend on the others."""
    return -(-length // EXACT) * EXACT


def kept_lengths(context: Context) -> tuple[int, int]:
    """Tokens that a context's keys and values, and its source's, are padded to where nothing may depend on the others:
    powers of 2, so that most contexts share a batch."""
    return _power(len(context.tokens)), _power(len(context.source or ()))


def _power(length: int) -> int:
    return max(EXACT, 1 << (length - 1).bit_length()) if length else 0


def _filled(
    rows: Sequence[list[int]], device: torch.device, *, left: bool, padded: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows as one (B, longest) int64, padded with 0 on one side, and booleans: what is no padding."""
    longest = max(map(len, rows))
    longest = filled_length(longest) if padded else longest
    filling = [[0] * (longest - len(row)) for row in rows]
    tokens = [fill + row if left else row + fill for fill, row in zip(filling, rows, strict=True)]
    counts = torch.tensor([len(row) for row in rows])[:, None]
    place = torch.arange(longest)
    padding_mask = place >= longest - counts if left else place < counts
    return torch.tensor(tokens, device=device), padding_mask.to(device)
