"""What the rules of layouts have to know of a config: a few numbers, read from it once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from data_pipeline.objectives.denoising import DenoisingObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from llmscale.config import ModelConfig, RunConfig

Named = tuple[tuple[str, int], ...]
"""(what a user calls a number, the number)."""


@dataclass(frozen=True)
class Facts:
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

    @cached_property
    def widest_tensor(self) -> int:
        """Every legal tensor-parallel size divides this."""
        return math.gcd(self.heads, *(size for _, size in self.widths))

    @cached_property
    def widest_sequence(self) -> int:
        """Every legal sequence-parallel size divides this."""
        return math.gcd(self.heads, *(length for _, length in self.lengths))

    @cached_property
    def widest_data(self) -> int:
        """Every legal data-parallel size divides this."""
        return math.gcd(*(share for _, share in self.shares))


def facts_of(config: RunConfig) -> Facts:
    """Read a config; its layout plays no part."""
    model = config.model
    return Facts(
        heads=model.heads,
        kv_heads=model.kv_head_count,
        layers=model.layers,
        encoder_decoder=model.architecture == "encoder_decoder",
        experts=model.experts.count if model.experts else 0,
        widths=_widths(model),
        lengths=_lengths(config),
        shares=_shares(config),
        optimizer=config.optimizer.name,
    )


def _widths(model: ModelConfig) -> Named:
    widths = [("model.vocab_multiple", model.vocab_multiple)]
    depth = max(model.layers, model.encoder_layer_count)
    has_experts = [model.has_experts(layer) for layer in range(depth)]
    if any(has_experts):
        own = model.experts is not None and model.experts.ffn_size is not None
        widths.append(("model.experts.ffn_size" if own else "model.ffn_size", model.expert_channels))
    if not all(has_experts):
        widths.append(("model.ffn_size", model.ffn_channels))
    return tuple(dict.fromkeys(widths))


def _lengths(config: RunConfig) -> Named:
    objective, length = config.objective, config.data.sequence_length
    if isinstance(objective, Seq2SeqObjective):
        target = objective.target_length
        if objective.concatenate:
            return (("data.sequence_length + objective.target_length", length + target),)
        return ("data.sequence_length", length), ("objective.target_length", target)
    if isinstance(objective, DenoisingObjective):
        return ("data.sequence_length", length), ("the length of the decoder's targets", _cut_out(objective, length))
    return (("data.sequence_length", length),)


@lru_cache
def _cut_out(objective: DenoisingObjective, sequence_length: int) -> int:
    """Tokens of a denoising sample's targets."""
    # Arrays, which nothing else here needs.
    from data_pipeline.objectives.denoising import noise, window_length

    return sum(noise(objective, window_length(objective, sequence_length))) + 1


def _shares(config: RunConfig) -> Named:
    shares = [("train.global_batch", config.train.global_batch)]
    if not config.data.finite:
        shares.append(("data.lanes", config.data.lanes))
    if config.train.batch_ramp is not None:
        shares.append(("train.batch_ramp.start", config.train.batch_ramp.start))
        shares.append(("train.batch_ramp.increment", config.train.batch_ramp.increment))
    return tuple(shares)
