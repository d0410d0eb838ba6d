"""Floating-point operations of a training step, from matrix products alone.

A product of (m, k) with (k, n) takes 2 m n k. The backward pass takes twice the forward pass. What counts for MFU is
what the model needs (PaLM, Chowdhery et al. 2022, appendix B); the hardware also does what is recomputed (Narayanan et
al. 2021, section 5.1 and appendix, whose equation 3 this equals for a GPT with full recomputation).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.model.attention.table import AttentionTable
from llmscale.model.heads import heads_of
from llmscale.plan.workload import Workload


@dataclass(frozen=True)
class Flops:
    """Operations of the forward pass of one sample; whole model, all ranks together."""

    projections: int
    """Products with weights inside blocks."""
    attention: int
    """Scores and their mixing of values."""
    head: int
    """Products of the heads."""

    @property
    def forward(self) -> int:
        return self.projections + self.attention + self.head

    @property
    def backward(self) -> int:
        return 2 * self.forward

    @property
    def model(self) -> int:
        """Forward and backward: what MFU counts."""
        return self.forward + self.backward

    def recomputed(self, mode: str, fused_attention: bool = True) -> int:
        """What `engine.activation_checkpointing` computes a second time; `selective` keeps the result of fused
        attention."""
        if mode == "block":
            return self.projections + self.attention
        return self.attention if mode == "selective" and not fused_attention else 0


def flops(config: ModelConfig, work: Workload, *, causal: bool = False) -> Flops:
    """Operations of one sample.

    Args:
        config: the shape.
        work: lengths and targets.
        causal: whether a causal layer is counted at what its tokens see, half of all pairs, as a kernel that skips the
            others computes it. The papers above count all pairs, and so does `llmscale` for MFU. Local layers are
            counted at their window in both cases.
    """
    decoder = config.architecture != "encoder"
    projections = attention = 0
    for length, memory, layers, own in _stacks(config, work, decoder):
        for layer in range(layers):
            projections += length * _dense(config, layer)
            attention += _attention(config, layer, length, own, causal)
        if memory:
            table = table_of(config, cross=True)
            for row in table.projections:
                read = memory if row.name in ("key", "value") else length
                projections += layers * 2 * read * row.inputs * row.outputs
            attention += layers * length * memory * _pair(table)
    targets = int(work.length * work.targets)
    head = sum(head.flops(work.vocab_size, targets) for head in heads_of(config))
    return Flops(projections, attention, head)


def _stacks(config: ModelConfig, work: Workload, decoder: bool) -> list[tuple[int, int, int, bool]]:
    """(tokens, tokens of the memory, layers, causal) of each stack."""
    stacks = [(work.length, work.memory, config.layers, decoder)]
    return [*stacks, (work.memory, 0, config.encoder_layer_count, False)] if work.memory else stacks


def _dense(config: ModelConfig, layer: int) -> int:
    """Products of one token with the weights of a layer."""
    hidden = config.hidden_size
    count = sum(row.inputs * row.outputs for row in table_of(config).projections)
    width = 3 if config.gated else 2
    if config.has_experts(layer):
        assert config.experts is not None
        count += hidden * config.experts.count + config.experts.per_token * width * hidden * config.expert_channels
    return 2 * (count + width * hidden * config.dense_channels(layer))


def _pair(table: AttentionTable) -> int:
    """Operations of all heads for a query and a key."""
    return 2 * table.heads * (table.key_channels + table.value_channels)


def seen(config: ModelConfig, layer: int, length: int, own_causal: bool, causal: bool) -> int:
    """Pairs of query and key that a layer computes for one sample, per head.

    Args:
        config: the shape.
        layer: its number.
        length: tokens.
        own_causal: whether the layer is causal.
        causal: whether a causal layer skips what its tokens do not see.
    """
    window = config.window if config.attention_kind(layer) == "local" else None
    if window is not None and own_causal and length > window:
        return window * (window + 1) // 2 + (length - window) * window
    if window is not None and not own_causal:
        return length * min(length, window + 1)
    return length * (length + 1) // 2 if own_causal and causal else length * length


def _attention(config: ModelConfig, layer: int, length: int, own_causal: bool, causal: bool) -> int:
    return seen(config, layer, length, own_causal, causal) * _pair(table_of(config))
