"""Keys and values of the tokens already read, kept for generation."""

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig


class KeyValueCache:
    """Room for the keys and values of `capacity` tokens of each of `batch` sequences, allocated once.

    All sequences of the batch have the same length. `Transformer.forward` writes the tokens it reads and
    advances `length`.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, 2, batch, capacity, config.kv_head_count, config.head_channels)
        self._store = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values of the new tokens, and give those of all tokens so far.

        Args:
            key, value: (B, T, kv_heads, channels); the tokens that follow the `length` ones held.

        Returns:
            Keys and values, (B, length + T, kv_heads, channels) each, as views.

        Raises:
            ValueError: there is no room for T more tokens.
        """
        end = self.length + key.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")
        keys, values = self._store[layer, 0], self._store[layer, 1]
        keys[:, self.length : end] = key
        values[:, self.length : end] = value
        return keys[:, :end], values[:, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as held, once every layer has written them."""
        self.length += tokens
