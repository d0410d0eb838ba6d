"""Parameters of a Transformer by part, whole or of one rank, as closed forms of the config.

What a tensor-parallel rank holds follows Shoeybi et al. 2019, section 3: projections into heads and inner channels are
cut by outputs, those back by inputs with whole biases, embedding and head by rows of the vocabulary; all else is whole.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.model.heads import heads_of
from llmscale.parallel.plans import stage_layers
from llmscale.plan.factors import factors

Counts = Counter[str]
"""Elements by part: embedding, positions, attention, cross_attention, feed_forward, router, experts, norms, head, and
factors (low-rank ones, but those of experts)."""


def parameters(
    config: ModelConfig,
    vocab_size: int,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    stage: int = 0,
    expert: int = 1,
) -> Counts:
    """Elements that one rank holds, before ZeRO; with the defaults, of the whole model.

    Args:
        config: the shape.
        vocab_size: tokens that the model knows; the embedding's rows are padded to `vocab_multiple`.
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
        stage: the rank's stage, from 0.
        expert: expert-parallel size.
    """
    cross = config.architecture == "encoder_decoder"
    held = stage_layers(config.layers, pipeline)[stage]
    counts = layers_parameters(config, held, cross, tensor, expert) + factors(config, held, cross, tensor, expert)
    if cross:
        below = range(config.encoder_layer_count)
        counts += layers_parameters(config, below, False, tensor, expert)
        counts += factors(config, below, False, tensor, expert, encoder=True)
        counts += _around(config, tensor)
    if stage == 0:
        counts += _first(config, vocab_size, tensor)
    if stage == pipeline - 1:
        counts += _last(config, vocab_size, tensor, tied_elsewhere=pipeline > 1)
    elif config.positions == "relative":
        counts["positions"] += _relative(config, tensor)
    return counts


def layers_parameters(config: ModelConfig, layers: range, cross: bool, tensor: int, expert: int) -> Counts:
    """Elements of several layers; layers of one kind are counted once."""
    counts: Counts = Counter()
    for layer, times in layer_kinds(config, layers):
        for part, elements in block_parameters(config, layer, cross, tensor, expert).items():
            counts[part] += times * elements
    return counts


def layer_kinds(config: ModelConfig, layers: range) -> tuple[tuple[int, int], ...]:
    """(a layer, how many of these are like it) for each kind: with experts or without, of global or local attention,
    with rotary positions or without, the first layer of all, the one that asks with a table."""
    experts = tuple(map(config.has_experts, layers)) if config.experts else ()
    asking = config.layers - 1 if config.query_layer else -1
    return _layer_kinds(layers, experts, tuple(config.attention_pattern), tuple(config.rotary_pattern), asking)


@lru_cache(maxsize=4096)
def _layer_kinds(
    layers: range, experts: tuple[bool, ...], pattern: tuple[str, ...], rotary: tuple[bool, ...], asking: int
) -> tuple[tuple[int, int], ...]:
    found: dict[tuple[object, ...], int] = {}
    counted: Counter[int] = Counter()
    for number, layer in enumerate(layers):
        attention = pattern[layer % len(pattern)], rotary[layer % len(rotary)]
        kind = (experts and experts[number], attention, layer == 0, layer == asking)
        counted[found.setdefault(kind, layer)] += 1
    return tuple(counted.items())


def block_parameters(config: ModelConfig, layer: int, cross: bool, tensor: int = 1, expert: int = 1) -> Counts:
    """Elements of one layer, `cross` with cross-attention, that one rank holds."""
    counts: Counts = Counter()
    table = table_of(config)
    counts["attention"] = sum(projection.elements(tensor) for projection in table.projections)
    counts["norms"] += sum(norm.elements(tensor) for norm in table.norms)
    if cross:
        counts["cross_attention"] = sum(
            projection.elements(tensor) for projection in table_of(config, cross=True).projections
        )
    counts["norms"] += config.block_norms(layer, cross) * _norm(config)
    if config.has_experts(layer):
        assert config.experts is not None
        counts["router"] = config.experts.count * (config.hidden_size + (config.experts.scoring == "sigmoid"))
        counts["experts"] = config.experts.count // expert * _feed_forward(config, config.expert_channels, tensor)
    if dense := config.dense_channels(layer):
        counts["feed_forward"] = _feed_forward(config, dense, tensor)
    return counts


def _norm(config: ModelConfig) -> int:
    return config.hidden_size * (2 if config.norm == "layernorm" and config.has_bias("norm") else 1)


def _feed_forward(config: ModelConfig, inner: int, tensor: int) -> int:
    """Up, gate where there is one, and down; of one expert where there are experts."""
    inner = inner // tensor
    into = (2 if config.gated else 1) * inner * (config.hidden_size + config.bias)
    return into + inner * config.hidden_size + config.bias * config.hidden_size


def _relative(config: ModelConfig, tensor: int) -> int:
    return config.relative_buckets * (config.heads // tensor) if config.positions == "relative" else 0


def _around(config: ModelConfig, tensor: int) -> Counts:
    """What a stack has besides its blocks, apart from the embedding."""
    counts: Counts = Counter()
    counts["positions"] += _relative(config, tensor)
    if config.final_norm:
        counts["norms"] += _norm(config)
    if config.query_layer:
        counts["positions"] += config.max_positions * config.hidden_size
    return counts


def _first(config: ModelConfig, vocab_size: int, tensor: int) -> Counts:
    counts: Counts = Counter()
    hidden = config.hidden_size
    counts["embedding"] = config.padded_vocab(vocab_size) // tensor * hidden
    counts["positions"] = (config.token_types + config.position_rows) * hidden
    if config.embedding_norm:
        counts["norms"] += _norm(config)
    return counts


def _last(config: ModelConfig, vocab_size: int, tensor: int, tied_elsewhere: bool) -> Counts:
    counts = _around(config, tensor)
    heads = heads_of(config)
    counts["head"] = sum(head.parameters(vocab_size, tensor=tensor, ties=not tied_elsewhere) for head in heads)
    return counts
