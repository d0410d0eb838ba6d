"""What attention has made of the tokens already read, kept for generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of


class KeyValueCache:
    """Room for the keys and values of `capacity` tokens of each of `batch` sequences, allocated once; or for what else
    the model's kind of attention keeps of a token.

    All sequences of the batch have the same length, shorter ones padded at their beginning.
    `Transformer.forward` writes the tokens it reads and advances `length`.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        kept = table_of(config).cache
        shapes = [(config.layers, batch, heads, capacity, channels) for heads, channels in kept]
        self._use([torch.empty(shape, dtype=dtype, device=device) for shape in shapes])
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.capacity = capacity
        self.length = 0

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Write what one layer keeps of the new tokens, and give that of all tokens so far.

        Args:
            new: (B, heads, T, channels) each, such as keys and values, of the tokens that follow the `length` held.

        Returns:
            (B, heads, length + T, channels) each, as views.

        Raises:
            ValueError: there is no room for T more tokens.
        """
        tokens = new[0].shape[2]
        end = self.length + tokens
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")
        stores = self._layers[layer]
        for store, part in zip(stores, new, strict=True):
            store.narrow(2, self.length, tokens).copy_(part)
        return tuple(store.narrow(2, 0, end) for store in stores)

    def memory(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """One layer's keys and values of the encoder's result, (B, kv_heads, S, channels) each; None before
        `keep_memory`."""
        return self._memory.get(layer)

    def keep_memory(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep one layer's keys and values of the encoder's result, which stay the same for all tokens."""
        self._memory[layer] = (key, value)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as held, once every layer has written them."""
        self.length += tokens

    def reorder(self, rows: Tensor, *, memory: bool = True) -> None:
        """Let sequence i continue what sequence rows[i] holds; the batch may change its size.

        Args:
            rows: (new batch,) int64.
            memory: False where every sequence keeps the encoder's result that it has, as the beams of one prompt do.
        """
        held = [store[:, rows, :, : self.length] for store in self._stores]
        if len(rows) != self._stores[0].shape[1]:
            shapes = [(store.shape[0], len(rows), *store.shape[2:]) for store in self._stores]
            self._use([store.new_empty(shape) for store, shape in zip(self._stores, shapes, strict=True)])
        for store, kept in zip(self._stores, held, strict=True):
            store[:, :, :, : self.length] = kept
        if memory:
            self._memory = {layer: (key[rows], value[rows]) for layer, (key, value) in self._memory.items()}

    def adopt(self, rows: Sequence[int], other: KeyValueCache, length: int, memory_length: int = 0) -> None:
        """Have what another cache holds as sequences `rows` of this one, at the end of the first `length` tokens.

        Args:
            rows: of each sequence of the other.
            length: what this one holds then; what stands in front is 0.
            memory_length: tokens of the encoder's result that there is room for, behind which is 0.
        """
        place = torch.tensor(rows, device=self._stores[0].device)
        start = length - other.length
        for store, held in zip(self._stores, other._stores, strict=True):
            store[:, place, :, :start] = 0
            store[:, place, :, start:length] = held[:, :, :, : other.length]
        self.length = length
        for layer, parts in other._memory.items():
            if layer not in self._memory:
                shapes = [(self._stores[0].shape[1], part.shape[1], memory_length, part.shape[3]) for part in parts]
                key, value = (part.new_zeros(shape) for part, shape in zip(parts, shapes, strict=True))
                self._memory[layer] = key, value
            for store, part in zip(self._memory[layer], parts, strict=True):
                store[place, :, : part.shape[2]] = part

    def repeat_first(self, start: int) -> None:
        """Have the first sequence again in place of all from `start` on."""
        for store in self._stores:
            store[:, start:, :, : self.length] = store[:, :1, :, : self.length]
        for stores in self._memory.values():
            for store in stores:
                store[start:] = store[:1]

    def _use(self, stores: list[Tensor]) -> None:
        self._stores = stores
        # Views made once: indexing costs more than it seems where a step takes a millisecond.
        self._layers = list(zip(*stores, strict=True))
