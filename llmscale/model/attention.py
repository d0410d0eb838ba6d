"""Multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.context import Context
from llmscale.model.dropout import LayerDropout, Place, drop
from llmscale.model.linear import Linear
from llmscale.model.norms import make_rms_norm
from llmscale.model.positions import rotate


class Core(nn.Module):
    """What mixes the tokens, between the projections: F.scaled_dot_product_attention. It has no parameters."""

    def __init__(self, config: ModelConfig, place: Place) -> None:
        super().__init__()
        self.scale = config.attention_scale
        self.dropout = config.attention_dropout
        self.place = place

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        dropout: LayerDropout | None = None,
    ) -> Tensor:
        """(B, heads, T, channels) queries and (B, kv_heads, S, channels) keys and values to (B, heads, T, channels)."""
        causal = causal and mask is None and query.shape[2] > 1
        probability = 0.0 if dropout is None else self.dropout
        if dropout is not None and dropout.layout_free and probability:
            keys, part = dropout.keys[self.place], dropout.part.heads
            return dropped_attention(query, key, value, mask, causal, self.scale, keys, probability, part)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=probability,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )


class Projections(nn.Module):
    """Query, key, value and output projections around what mixes the tokens.

    They are separate modules, so that a table can shard each by heads.
    """

    places = (Place.ATTENTION, Place.ATTENTION_OUTPUT)
    """Where dropout drops probabilities, and what comes out."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels = config.head_channels
        self.dropout = config.dropout
        inner, shared = config.heads * self.channels, config.kv_head_count * self.channels
        bias = config.has_bias("qkv")
        self.query = Linear(config.hidden_size, inner, bias=bias)
        self.key = Linear(config.hidden_size, shared, bias=bias)
        self.value = Linear(config.hidden_size, shared, bias=bias)
        self.core = Core(config, self.places[0])
        self.output = Linear(inner, config.hidden_size, bias=config.has_bias("attention_output"))

    def heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads x channels) to (B, T, heads, channels)."""
        return projected.unflatten(-1, (-1, self.channels))

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        dropout: LayerDropout | None = None,
    ) -> Tensor:
        """(B, heads, T, channels) queries and (B, kv_heads, S, channels) keys and values to (B, T, hidden_size)."""
        mixed = self.core(query, key, value, mask, causal, dropout)
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        if dropout is not None and self.dropout:
            mixed = drop(mixed, dropout.keys[self.places[1]], self.dropout, [dropout.part.positions])
        return mixed


class Attention(Projections):
    """Each token mixes itself with the tokens that it sees."""

    def __init__(self, config: ModelConfig, layer: int, causal: bool) -> None:
        super().__init__(config, layer)
        self.causal = causal
        self.kind = config.attention_kind(layer)
        self.interleaved = config.rotary_interleaved
        self.norm_heads = config.query_key_norm_over == "head"
        queries, keys = (1, 1) if self.norm_heads else (config.heads, config.kv_head_count)
        normed = config.query_key_norm
        self.query_norm = make_rms_norm(config, queries * self.channels) if normed else None
        self.key_norm = make_rms_norm(config, keys * self.channels) if normed else None

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """(B, T, hidden_size) to the same shape; `context.queries` ask in place of the hidden states where given."""
        asking = hidden if context.queries is None else context.queries.expand_as(hidden)
        query, key, value = self.project(asking, hidden)
        if self.query_norm is not None and self.key_norm is not None and not self.norm_heads:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = self.heads(query), self.heads(key), self.heads(value)
        if self.query_norm is not None and self.key_norm is not None and self.norm_heads:
            query, key = self.query_norm(query), self.key_norm(key)
        rotary = context.rotary[self.kind]
        if rotary is not None:
            query, key = rotate(query, rotary, self.interleaved), rotate(key, rotary, self.interleaved)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if context.cache is not None:
            key, value = context.cache.extend(self.layer, key, value)
        return self.mix(query, key, value, context.masks[self.kind], self.causal, context.dropout)

    def project(self, asking: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `asking`, keys and values of `hidden`, (B, T, hidden_size) both: (B, T, heads x channels) each."""
        return self.query(asking), self.key(hidden), self.value(hidden)


class CrossAttention(Projections):
    """Each token of the decoder mixes the tokens of the encoder's result."""

    places = (Place.CROSS_ATTENTION, Place.CROSS_ATTENTION_OUTPUT)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """(B, T, hidden_size) to the same shape."""
        query = self.heads(self.query(hidden)).transpose(1, 2)
        kept = context.cache.memory(self.layer) if context.cache is not None else None
        if kept is None:
            assert context.memory is not None
            kept = (
                self.heads(self.key(context.memory)).transpose(1, 2),
                self.heads(self.value(context.memory)).transpose(1, 2),
            )
            if context.cache is not None:
                context.cache.keep_memory(self.layer, *kept)
        return self.mix(query, *kept, context.memory_mask, causal=False, dropout=context.dropout)


def dropped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    keys: Tensor,
    rate: float,
    part: int = 0,
) -> Tensor:
    """F.scaled_dot_product_attention with hashed dropout of the probabilities, which its kernels cannot do.

    Args:
        query: (B, heads, T, channels).
        key, value: (B, kv_heads, S, channels).
        mask: booleans (True: seen) or biases, broadcast to (B, heads, T, S).
        causal: in place of a mask: each query sees the keys up to its own.
        scale: of the scores; None: 1 / sqrt(channels).
        keys: (B, 2) of the dropout.
        rate: probability that a probability is dropped.
        part: which of equal parts of all heads these are.

    Returns:
        (B, heads, T, channels).
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    probabilities = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
    return drop(probabilities, keys, rate, [part]) @ value
