"""Multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023)."""

from torch import Tensor

from llmscale.config.model import ModelConfig
from llmscale.model.attention.modules.core import SelfAttention
from llmscale.model.context import Context
from llmscale.model.dropout import Place
from llmscale.model.linear import Linear
from llmscale.model.norms import make_rms_norm
from llmscale.model.positions import rotate


class Projections(SelfAttention):
    """Query, key, value and output projections around what mixes the tokens.

    They are separate modules, so that a table can shard each by heads.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.channels = config.head_channels
        inner, shared = config.heads * self.channels, config.kv_head_count * self.channels
        bias = config.has_bias("qkv")
        self.query = Linear(config.hidden_size, inner, bias=bias)
        self.key = Linear(config.hidden_size, shared, bias=bias)
        self.value = Linear(config.hidden_size, shared, bias=bias)
        self.output = Linear(inner, config.hidden_size, bias=config.has_bias("attention_output"))

    def heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads x channels) to (B, T, heads, channels)."""
        return projected.unflatten(-1, (-1, self.channels))


class Attention(Projections):
    """Each token mixes itself with the tokens that it sees."""

    def __init__(self, config: ModelConfig, layer: int, causal: bool) -> None:
        super().__init__(config, layer)
        self.causal = causal
        self.kind = config.attention_kind(layer)
        self.rotates = config.rotates(layer)
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
        if self.rotates and rotary is not None:
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
