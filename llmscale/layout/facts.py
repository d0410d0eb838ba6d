"""What the rules of layouts have to know of a config: a few numbers, read from it once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from llmscale.config import ModelConfig, RunConfig
from llmscale.model.heads import heads_of
from llmscale.objectives import model_side
from llmscale.objectives.objective import Named


@dataclass(frozen=True)
class LayoutFacts:
    """The numbers of a config that a layout has to divide or respect."""

    heads: int
    kv_heads: int
    layers: int
    """Of the decoder, where there are two stacks."""
    encoder_decoder: bool
    experts: int
    """Experts of a layer; 0: every layer is dense."""
    widths: Named
    """What tensor parallelism cuts, besides heads."""
    lengths: Named
    """Tokens of a sample, as the encoder and the decoder read it."""
    shares: Named
    """What data-parallel ranks share evenly: samples and lanes."""
    optimizer: str
    whole_sequences: tuple[str, ...] = ()
    """Heads that read several positions of a sequence at once."""
    whole_batches: tuple[str, ...] = ()
    """Heads whose loss takes all samples of a global batch."""

    @cached_property
    def widest_tensor(self) -> int:
        """Every legal tensor-parallel size divides this."""
        return math.gcd(self.heads, *(size for _, size in self.widths))

    @cached_property
    def widest_context(self) -> int:
        """Every legal context-parallel size divides this."""
        return math.gcd(self.heads, *(length for _, length in self.lengths))

    @cached_property
    def widest_data(self) -> int:
        """Every legal data-parallel size divides this."""
        return math.gcd(*(share for _, share in self.shares))


def facts_of(config: RunConfig) -> LayoutFacts:
    """Read a config; its layout plays no part."""
    model = config.model
    return LayoutFacts(
        heads=model.heads,
        kv_heads=model.kv_head_count,
        layers=model.layers,
        encoder_decoder=model.architecture == "encoder_decoder",
        experts=model.experts.count if model.experts else 0,
        widths=_widths(model),
        lengths=model_side(config.objective).lengths(config.data.sequence_length),
        shares=_shares(config),
        optimizer=config.optimizer.name,
        whole_sequences=model_side(config.objective).whole_sequences(model),
        whole_batches=tuple(head.name for head in heads_of(model) if head.whole_batch),
    )


def _widths(model: ModelConfig) -> Named:
    widths = [("model.vocab_multiple", model.vocab_multiple)]
    depth = max(model.layers, model.encoder_layer_count)
    has_experts = [model.has_experts(layer) for layer in range(depth)]
    if any(has_experts):
        own = model.experts is not None and model.experts.ffn_size is not None
        widths.append(("model.experts.ffn_size" if own else "model.ffn_size", model.expert_channels))
    for dense in {model.dense_channels(layer) for layer in range(depth)} - {0}:
        widths.append(("model.ffn_size", dense))
    return tuple(dict.fromkeys(widths))


def _shares(config: RunConfig) -> Named:
    shares = [("train.global_batch", config.train.global_batch)]
    if not config.data.finite:
        shares.append(("data.lanes", config.data.lanes))
    if config.train.batch_ramp is not None:
        shares.append(("train.batch_ramp.start", config.train.batch_ramp.start))
        shares.append(("train.batch_ramp.increment", config.train.batch_ramp.increment))
    return tuple(shares)
