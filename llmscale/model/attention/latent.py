"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""

from __future__ import annotations

from llmscale.config.model import ModelConfig
from llmscale.model.attention.table import AttentionKind, AttentionTable, Projection, VectorNorm


def _table(config: ModelConfig) -> AttentionTable:
    latent = config.latent
    assert latent is not None
    hidden, heads, bias = config.hidden_size, config.heads, config.has_bias("qkv")
    queries, rank = heads * config.head_channels, latent.key_value_rank
    norms = [VectorNorm("key_value_norm", rank, "replicated_sum")]
    if latent.query_rank is None:
        asking = [Projection("query", hidden, queries, False, "column")]
    else:
        asking = [
            Projection("query_down", hidden, latent.query_rank, bias, "replicated_sum"),
            Projection("query_up", latent.query_rank, queries, False, "column", inner=True),
        ]
        norms.append(VectorNorm("query_norm", latent.query_rank, "replicated_sum"))
    both = heads * (latent.plain_size + latent.value_size)
    return AttentionTable(
        projections=(
            *asking,
            Projection("key_value_down", hidden, rank + latent.rotary_size, bias, "replicated_sum"),
            Projection("key_value_up", rank, both, False, "column", inner=True),
            Projection("output", heads * latent.value_size, hidden, config.has_bias("attention_output"), "row"),
        ),
        norms=tuple(norms),
        heads=heads,
        key_heads=heads,
        key_channels=config.head_channels,
        value_channels=latent.value_size,
        cache=((1, rank + latent.rotary_size),),
    )


KIND = AttentionKind("latent", is_of=lambda config: config.latent is not None, table=_table)
