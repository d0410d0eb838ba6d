"""Multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from llmscale.config.model import ModelConfig
from llmscale.model.attention.table import AttentionKind, AttentionTable, Projection, VectorNorm


def cross_table(config: ModelConfig) -> AttentionTable:
    """That of a decoder's attention to its encoder, which has no norms."""
    hidden, channels, bias = config.hidden_size, config.head_channels, config.has_bias("qkv")
    queries, keys = config.heads * channels, config.kv_head_count * channels
    return AttentionTable(
        projections=(
            Projection("query", hidden, queries, bias, "column", fan_in=hidden * channels),
            Projection("output", queries, hidden, config.has_bias("attention_output"), "row"),
            Projection("key", hidden, keys, bias, "key_value", channels),
            Projection("value", hidden, keys, bias, "key_value", channels),
        ),
        norms=(),
        heads=config.heads,
        key_heads=config.kv_head_count,
        key_channels=channels,
        value_channels=channels,
        cache=((config.kv_head_count, channels),) * 2,
    )


def _table(config: ModelConfig) -> AttentionTable:
    table = cross_table(config)
    if not config.query_key_norm:
        return table
    heads, keys, channels = config.heads, config.kv_head_count, config.head_channels
    norms = (
        (
            VectorNorm("query_norm", channels, "replicated_sum", heads),
            VectorNorm("key_norm", channels, "replicated_sum", keys),
        )
        if config.query_key_norm_over == "head"
        else (
            VectorNorm("query_norm", heads * channels, "column"),
            VectorNorm("key_norm", keys * channels, "key_value", head=channels),
        )
    )
    return replace(table, norms=norms)


KIND = AttentionKind("multi_head", is_of=lambda config: True, table=_table)
