"""Low-rank factors of linear layers (`ModelConfig.lora`), as closed forms of the config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.model.factors import targeted


class _Linear(NamedTuple):
    """A linear layer of a block, as one tensor-parallel rank has it."""

    name: str
    outputs: int
    inputs: int
    experts: int = 0
    """How many the rank has of it; 0: it is none of experts."""


def factors(
    config: ModelConfig, layers: range, cross: bool, tensor: int = 1, expert: int = 1, *, encoder: bool = False
) -> Counter[str]:
    """Elements of the factors that one rank has in these layers of the model's stack, or of its encoder: of those of
    experts in `experts`, of others in `factors`.

    Args:
        cross: whether the layers have cross-attention.
        tensor: tensor-parallel size.
        expert: expert-parallel size.

    Raises:
        UserError: a target matches no layer of the model.
    """
    counts: Counter[str] = Counter()
    if config.lora is None:
        return counts
    two, rank = config.architecture == "encoder_decoder", config.lora.rank
    every = [each.name for layer in range(config.layers) for each in _linears(config, "", layer, two, tensor, expert)]
    if two:
        below = range(config.encoder_layer_count)
        every += [each.name for layer in below for each in _linears(config, "encoder.", layer, False, tensor, expert)]
    chosen = targeted(config.lora.targets, every)
    for layer in layers:
        for each in _linears(config, "encoder." if encoder else "", layer, cross, tensor, expert):
            if each.name in chosen:
                elements = rank * (each.outputs + each.inputs) + config.lora.dora * each.outputs
                counts["experts" if each.experts else "factors"] += max(each.experts, 1) * elements
    return counts


def _linears(config: ModelConfig, stack: str, layer: int, cross: bool, tensor: int, expert: int) -> Iterator[_Linear]:
    block = f"{stack}blocks.{layer}"
    for within in ("attention", "cross_attention") if cross else ("attention",):
        for row in table_of(config, cross=within == "cross_attention").projections:
            yield _Linear(f"{block}.{within}.{row.name}", *row.local(tensor))
    dense, experts = config.dense_channels(layer), config.experts if config.has_experts(layer) else None
    if experts is not None:
        yield from _feed_forward(
            config, f"{block}.feed_forward", config.expert_channels // tensor, experts.count // expert
        )
    if dense:
        name = "feed_forward" if experts is None else "shared_feed_forward"
        yield from _feed_forward(config, f"{block}.{name}", dense // tensor)


def _feed_forward(config: ModelConfig, name: str, inner: int, experts: int = 0) -> Iterator[_Linear]:
    yield _Linear(f"{name}.up", inner, config.hidden_size, experts)
    if config.gated:
        yield _Linear(f"{name}.gate", inner, config.hidden_size, experts)
    yield _Linear(f"{name}.down", config.hidden_size, inner, experts)
