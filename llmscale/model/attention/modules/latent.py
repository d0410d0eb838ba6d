"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig
from llmscale.model.attention.modules.core import SelfAttention
from llmscale.model.context import Context
from llmscale.model.linear import Linear
from llmscale.model.norms import RMSNorm
from llmscale.model.positions import rotate


class HeadsUp(Linear):
    """The projection from a short vector to the keys and values of all heads, whose weight is also used apart."""


class Attention(SelfAttention):
    """Queries, keys and values of all heads are made of short vectors; that of keys and values is kept for generation,
    beside one rotated key that all heads share."""

    def __init__(self, config: ModelConfig, layer: int, causal: bool) -> None:
        super().__init__(config, layer)
        latent = config.latent
        assert latent is not None
        self.causal = causal
        self.kind = config.attention_kind(layer)
        self.interleaved = config.rotary_interleaved
        self.sizes = [latent.plain_size, latent.rotary_size]
        self.rank, self.value_size = latent.key_value_rank, latent.value_size
        # The core sees other channels where it mixes short vectors.
        self.core.scale = config.attention_scale or config.head_channels**-0.5
        hidden, queries, bias = config.hidden_size, config.heads * config.head_channels, config.has_bias("qkv")
        if latent.query_rank is None:
            self.query = Linear(hidden, queries, bias=False)
        else:
            self.query_down = Linear(hidden, latent.query_rank, bias=bias)
            self.query_norm = RMSNorm(latent.query_rank, eps=latent.norm_eps)
            self.query_up = Linear(latent.query_rank, queries, bias=False)
        self.short_queries = latent.query_rank is not None
        self.key_value_down = Linear(hidden, self.rank + latent.rotary_size, bias=bias)
        self.key_value_norm = RMSNorm(self.rank, eps=latent.norm_eps)
        self.key_value_up = HeadsUp(self.rank, config.heads * (latent.plain_size + latent.value_size), bias=False)
        self.output = Linear(config.heads * latent.value_size, hidden, bias=config.has_bias("attention_output"))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """(B, T, hidden_size) to the same shape; `context.queries` ask in place of the hidden states where given."""
        rotary, mask = context.rotary[self.kind], context.masks[self.kind]
        assert rotary is not None
        asking = hidden if context.queries is None else context.queries.expand_as(hidden)
        asking = self.query_up(self.query_norm(self.query_down(asking))) if self.short_queries else self.query(asking)
        plain, turned = asking.unflatten(-1, (-1, sum(self.sizes))).split(self.sizes, dim=-1)
        short, shared = self.key_value_down(hidden).split([self.rank, self.sizes[1]], dim=-1)
        query = torch.cat([plain, rotate(turned, rotary, self.interleaved)], dim=-1).transpose(1, 2)
        shared = rotate(shared[:, :, None], rotary, self.interleaved)
        kept = torch.cat([self.key_value_norm(short)[:, :, None], shared], dim=-1).transpose(1, 2)
        if context.cache is not None:
            past = context.cache.length
            (kept,) = context.cache.extend(self.layer, kept)
            if past:
                return self._mix_short(query, kept, mask)
        short, shared = kept.split([self.rank, self.sizes[1]], dim=-1)
        heads = self.key_value_up(short[:, 0]).unflatten(-1, (-1, self.sizes[0] + self.value_size)).transpose(1, 2)
        key, value = heads.split([self.sizes[0], self.value_size], dim=-1)
        key = torch.cat([key, shared.expand(-1, key.shape[1], -1, -1)], dim=-1)
        return self.mix(query, key, value, mask, self.causal, context.dropout)

    def _mix_short(self, query: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
        """What `forward` gives for a few new tokens, without the keys and values of those before: their projection goes
        into the queries and behind the mixing (DeepSeek-V2, section 2.1.2).

        Args:
            query: (B, heads, T, channels).
            kept: (B, 1, S, rank + rotary_size) of all tokens so far.
            mask: as the core takes it.
        """
        weight = self.key_value_up.whole_weight().unflatten(0, (-1, self.sizes[0] + self.value_size))
        to_key, to_value = weight.split([self.sizes[0], self.value_size], dim=1)
        plain, turned = query.split(self.sizes, dim=-1)
        query = torch.cat([plain @ to_key, turned], dim=-1)
        mixed = self.core(query, kept, kept[..., : self.rank], mask, self.causal)
        return self.output((mixed @ to_value.transpose(-2, -1)).transpose(1, 2).flatten(2))
