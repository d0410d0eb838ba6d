"""Causal multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.cache import KeyValueCache
from llmscale.model.positions import rotate


class Attention(nn.Module):
    """Query, key, value and output projections around F.scaled_dot_product_attention.

    The projections are separate modules, so that a table can shard each by heads.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels = config.head_channels
        inner, shared = config.heads * self.channels, config.kv_head_count * self.channels
        self.query = nn.Linear(config.hidden_size, inner, bias=config.bias)
        self.key = nn.Linear(config.hidden_size, shared, bias=config.bias)
        self.value = nn.Linear(config.hidden_size, shared, bias=config.bias)
        self.output = nn.Linear(inner, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Mix each position with the earlier ones.

        Args:
            hidden: (B, T, hidden_size).
            rotary: tables of `rotary_tables`, or None.
            mask: (B or 1, 1, T, S) boolean, True where query t may see key s; None: causal.
            cache: holds the keys of earlier tokens; S counts them.

        Returns:
            (B, T, hidden_size).
        """
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.channels)) for projection in (self.query, self.key, self.value)
        )
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and query.shape[1] > 1,
            enable_gqa=key.shape[2] != query.shape[2],
        )
        return self.output(mixed.transpose(1, 2).flatten(2))


def segment_mask(segment_ids: Tensor) -> Tensor:
    """A causal mask that keeps packed documents apart: (B, T) document numbers to (B, 1, T, T) booleans."""
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return same.tril()


def prefix_mask(prefix_lengths: Tensor, length: int) -> Tensor:
    """(B, 1, T, T) booleans: all tokens see the prefix, and those before them (prefix LM)."""
    place = torch.arange(length, device=prefix_lengths.device)
    causal = place[:, None] >= place
    return causal | (place < prefix_lengths[:, None, None, None])


def continuation_mask(past: int, length: int, device: torch.device) -> Tensor:
    """(1, 1, length, past + length) booleans: `length` new tokens see `past` earlier ones and each other causally."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)[None, None]
