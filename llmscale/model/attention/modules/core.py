"""What mixes the tokens, between the projections of any kind of attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.context import Context
from llmscale.model.dropout import LayerDropout, Place, drop


class ScaledDotProduct(nn.Module):
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


class SelfAttention(nn.Module):
    """Each token mixes itself with the tokens that it sees; the module of a kind has an `output` projection."""

    places = (Place.ATTENTION, Place.ATTENTION_OUTPUT)
    """Where dropout drops probabilities, and what comes out."""
    output: nn.Module

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = config.dropout
        self.core = ScaledDotProduct(config, self.places[0])

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """(B, T, hidden_size) to the same shape; `context.queries` ask in place of the hidden states where given."""
        raise NotImplementedError

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
