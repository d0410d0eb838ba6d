"""Keys and values of the tokens already read, kept for generation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig


class KeyValueCache:
    """Room for the keys and values of `capacity` tokens of each of `batch` sequences, allocated once.

    All sequences of the batch have the same length, shorter ones being filled up at their beginning.
    `Transformer.forward` writes the tokens it reads and advances `length`.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, 2, batch, config.kv_head_count, capacity, config.head_channels)
        self._use(torch.empty(shape, dtype=dtype, device=device))
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.capacity = capacity
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values of the new tokens, and give those of all tokens so far.

        Args:
            key, value: (B, kv_heads, T, channels); the tokens that follow the `length` ones held.

        Returns:
            Keys and values, (B, kv_heads, length + T, channels) each, as views.

        Raises:
            ValueError: there is no room for T more tokens.
        """
        new = key.shape[2]
        end = self.length + new
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")
        keys, values = self._layers[layer]
        keys.narrow(2, self.length, new).copy_(key)
        values.narrow(2, self.length, new).copy_(value)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

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
        held = self._store[:, :, rows, :, : self.length]
        if len(rows) != self._store.shape[2]:
            layers, two, _, heads, capacity, channels = self._store.shape
            self._use(self._store.new_empty((layers, two, len(rows), heads, capacity, channels)))
        self._store[:, :, :, :, : self.length] = held
        if memory:
            self._memory = {layer: (key[rows], value[rows]) for layer, (key, value) in self._memory.items()}

    def _use(self, store: Tensor) -> None:
        self._store = store
        # Views made once: indexing costs more than it seems where a step takes a millisecond.
        self._layers = [(layer[0], layer[1]) for layer in store]
