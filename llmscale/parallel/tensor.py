"""Tensor parallelism, applied to a model from outside by the tables of `llmscale.parallel.plans`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from llmscale.config import ModelConfig
from llmscale.model import Part, Transformer
from llmscale.model.attention.modules.core import SelfAttention
from llmscale.model.attention.modules.multi_head import CrossAttention
from llmscale.model.attention.table import Cut
from llmscale.model.experts import ExpertLinear, Experts
from llmscale.model.factors import DOWN, FACTORS, MAGNITUDE, UP
from llmscale.model.feed_forward import FeedForward
from llmscale.model.linear import Linear
from llmscale.model.norms import RMSNorm
from llmscale.model.stack import Stack
from llmscale.parallel import layers
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.low_rank import share_factors
from llmscale.parallel.parameters import narrow
from llmscale.parallel.plans import cut_of
from llmscale.parallel.swap import mix_in
from llmscale.slices.tensor_slice import TensorSlice

_SHARDED: dict[type[nn.Module], type[nn.Module]] = {
    CrossAttention: layers.ShardedCrossAttention,
    SelfAttention: layers.ShardedAttention,
    FeedForward: layers.ShardedFeedForward,
    Experts: layers.ShardedExperts,
    Transformer: layers.ShardedTransformer,
    Stack: layers.ShardedStack,
}
"""What a sub-layer, stack or model becomes: the first that it is."""


_SUMMED: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (RMSNorm, layers.SharedRMSNorm),
    (nn.LayerNorm, layers.SharedLayerNorm),
    (Linear, layers.SharedLinear),
)
"""What a module becomes whose parameters all ranks have and use for parts of their own."""


def apply_tensor_parallel(model: Transformer, grid: RankGrid, sequence_parallel: bool) -> dict[str, TensorSlice]:
    """Make of a model this rank's part of it, in place; nothing where the tensor-parallel size is 1.

    Args:
        model: on the meta device.
        grid: with process groups.
        sequence_parallel: whether the ranks share the residual stream by positions.

    Returns:
        What each cut or shared parameter is a part of, by name.
    """
    if grid.tensor == 1:
        return {}
    ranks = layers.TensorRanks(grid.group("tensor"), grid.coordinate("tensor"), grid.tensor, sequence_parallel)
    slices: dict[str, TensorSlice] = {}
    for name, module in list(model.named_modules()):
        sharded = next((kind for base, kind in _SHARDED.items() if isinstance(module, base)), None)
        if sharded is not None:
            mix_in(module, sharded, ranks=ranks)
        cut = cut_of(model.config, name, sequence_parallel)
        if cut is not None and not isinstance(module, Experts):
            for own, rectangle in _cut(module, cut, model.config, grid, ranks).items():
                slices[f"{name}.{own}"] = rectangle
                narrow(module, own, rectangle)
    # Parameters that all ranks have are written by the first.
    for name, parameter in model.named_parameters():
        slices.setdefault(name, TensorSlice.whole(parameter.shape, first=ranks.rank == 0))
    model._tie()
    return slices


def dropout_part(grid: RankGrid, sequence_parallel: bool) -> Part:
    """Which part of each layer this rank computes."""
    rank, context = grid.coordinate("tensor"), grid.coordinate("context")
    return Part(
        positions=context * grid.tensor + rank if sequence_parallel else context,
        inner_positions=context,
        channels=rank,
        heads=rank * grid.context + context,
    )


def _cut(
    module: nn.Module, cut: Cut, config: ModelConfig, grid: RankGrid, ranks: layers.TensorRanks
) -> dict[str, TensorSlice]:
    """The slices of a module's own parameters, once it has become what handles them."""
    stacked = isinstance(module, ExpertLinear)
    whole = {name: TensorSlice.whole(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}

    def along(dim: int, names: Iterable[str]) -> dict[str, TensorSlice]:
        return {name: whole[name].narrowed(dim, ranks.rank, ranks.size) for name in names if name in whole}

    match cut:
        case "column":
            if isinstance(module, RMSNorm):
                mix_in(module, layers.SplitRMSNorm, ranks=ranks, summed=None)
            share_factors(module, {DOWN: ranks.group})
            return along(1 if stacked else 0, [name for name in whole if name != DOWN])
        case "vocabulary":
            embeds = isinstance(module, nn.Embedding)
            mix_in(module, layers.VocabularyEmbedding if embeds else layers.VocabularyHead, ranks=ranks)
            return along(0, whole)
        case "row":
            kind = layers.RowExpertLinear if stacked else layers.RowLinear
            mix_in(module, kind, ranks=ranks, summed=ranks.group)
            share_factors(module, {UP: ranks.group, MAGNITUDE: ranks.group}, inputs=ranks.group)
            return along(2 if stacked else 1, ("weight", DOWN))
        case "heads":
            return along(1, whole)
        case "key_value":
            return _cut_key_value(module, whole, config.kv_head_count, grid, ranks)
        case "replicated_sum":
            shared = next(kind for base, kind in _SUMMED if isinstance(module, base))
            mix_in(module, shared, summed=ranks.group)
            share_factors(module, dict.fromkeys(FACTORS, ranks.group))
            return {}


def _cut_key_value(
    module: nn.Module, whole: dict[str, TensorSlice], heads: int, grid: RankGrid, ranks: layers.TensorRanks
) -> dict[str, TensorSlice]:
    """Keys or values: by heads, and several ranks have the same head where there are fewer heads than ranks."""
    cut = {name: rectangle for name, rectangle in whole.items() if name != DOWN}
    if heads >= ranks.size:
        if isinstance(module, RMSNorm):
            mix_in(module, layers.SplitRMSNorm, ranks=ranks, summed=None)
        share_factors(module, {DOWN: ranks.group})
        return {name: rectangle.narrowed(0, ranks.rank, ranks.size) for name, rectangle in cut.items()}
    alike = ranks.size // heads
    part = ranks.rank // alike
    members = grid.ranks("tensor")[part * alike : (part + 1) * alike]
    if isinstance(module, RMSNorm):
        mix_in(module, layers.SplitRMSNorm, ranks=ranks, summed=grid.group_of(members))
    else:
        group = grid.group_of(members)
        mix_in(module, layers.SharedLinear, summed=group)
        share_factors(module, {DOWN: ranks.group, UP: group, MAGNITUDE: group})
    first = ranks.rank % alike == 0
    return {name: replace(rectangle.narrowed(0, part, heads), first=first) for name, rectangle in cut.items()}
