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
        self._store = torch.empty(shape, dtype=dtype, device=device)
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
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")
        keys, values = self._store[layer, 0], self._store[layer, 1]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

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

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue what sequence rows[i] holds, as beam search needs; the batch may change its size."""
        self._store = self._store[:, :, rows]
        self._memory = {layer: (key[rows], value[rows]) for layer, (key, value) in self._memory.items()}
