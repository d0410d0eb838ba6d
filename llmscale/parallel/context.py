"""Context parallelism: ranks share each sequence by positions, and attention by heads.

DeepSpeed-Ulysses (Jacobs et al. 2023, section 3.1). Everything but attention looks at one position at a time, so a rank
computes its positions alone; around attention an all-to-all gives it all positions of its part of the heads. To
DeepSpeed these ranks are data-parallel ones: they have the same weights and see other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batch import Batch, no_labels
from llmscale.model import Transformer
from llmscale.model.attention.modules.core import ScaledDotProduct
from llmscale.model.dropout import LayerDropout
from llmscale.model.heads import Head
from llmscale.model.masks import AttentionMask
from llmscale.model.positions import RelativeBias
from llmscale.model.stack import Stack
from llmscale.parallel.collectives import POSITIONS, exchange
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.swap import mix_in

_HEADS, _PLACES = 1, 2
"""Dimensions of queries, keys and values, (B, heads, T, channels)."""


@dataclass(frozen=True)
class ContextRanks:
    """A context-parallel group as its modules see it."""

    group: Any
    rank: int
    size: int

    def own(self, whole: Tensor, dim: int = POSITIONS) -> Tensor:
        """This rank's part of a tensor along `dim`, a view."""
        return whole.narrow(dim, self.rank * (whole.shape[dim] // self.size), whole.shape[dim] // self.size)


class ContextScaledDotProduct(ScaledDotProduct):
    """Attention of all positions, of which each rank computes some heads.

    What enters and leaves has this rank's positions and all heads that its tensor-parallel rank has.
    """

    context_ranks: ContextRanks

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        dropout: LayerDropout | None = None,
    ) -> Tensor:
        group, size = self.context_ranks.group, self.context_ranks.size
        if key.shape[_HEADS] < size:
            # Fewer heads than ranks: neighbours get the same one.
            alike = size // key.shape[_HEADS]
            key, value = key.repeat_interleave(alike, dim=_HEADS), value.repeat_interleave(alike, dim=_HEADS)
        query, key, value = (exchange(part, group, _HEADS, _PLACES) for part in (query, key, value))
        return exchange(super().forward(query, key, value, mask, causal, dropout), group, _PLACES, _HEADS)


class ContextBias(RelativeBias):
    """Biases by distance of this rank's heads; the table is whole."""

    context_ranks: ContextRanks

    def forward(self, distance: Tensor) -> Tensor:
        # All rows first: the heads cannot be chosen before ZeRO 3 has brought the table together.
        rows = self.table(torch.arange(self.buckets, device=distance.device))
        return F.embedding(self.bucket(distance), self.context_ranks.own(rows, 1)).permute(2, 0, 1)[None]


class ContextStack(Stack):
    """A stack that is given and gives the hidden states of this rank's positions, but the numbers of all."""

    context_ranks: ContextRanks

    def run(
        self, hidden: Tensor, positions: Tensor, attention_mask: AttentionMask, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        return super().run(hidden, self.context_ranks.own(positions), attention_mask, **others)

    @property
    def heads(self) -> range:
        whole = super().heads
        size = len(whole) // self.context_ranks.size
        return whole[self.context_ranks.rank * size : (self.context_ranks.rank + 1) * size]


class ContextTransformer(ContextStack, Transformer):
    """A Transformer that reads whole sequences and gives the hidden states of this rank's positions."""

    def _embed(self, inputs: Tensor, positions: Tensor, token_types: Tensor | None = None) -> Tensor:
        own = self.context_ranks.own
        return super()._embed(own(inputs), own(positions), None if token_types is None else own(token_types))


_KINDS: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (Transformer, ContextTransformer),
    (Stack, ContextStack),
    (ScaledDotProduct, ContextScaledDotProduct),
    (RelativeBias, ContextBias),
)
"""What a module becomes: the first that it is."""


def apply_context_parallel(model: Transformer, grid: RankGrid) -> None:
    """Let a model compute this rank's positions, in place; nothing where the context-parallel size is 1.

    Args:
        model: shared by tensor-parallel ranks already, where it is to be.
        grid: with process groups.
    """
    if grid.context == 1:
        return
    ranks = ContextRanks(grid.group("context"), grid.coordinate("context"), grid.context)
    for module in model.modules():
        kind = next((kind for base, kind in _KINDS if isinstance(module, base)), None)
        if kind is not None:
            mix_in(module, kind, context_ranks=ranks)


def own_targets(batch: Batch, heads: Sequence[Head], grid: RankGrid) -> Batch:
    """The batch with the targets, weights and labels of this rank's positions, whose hidden states it has. Labels of
    what is read from the first token are for the rank that has it."""
    if grid.context == 1:
        return batch
    ranks = ContextRanks(None, grid.coordinate("context"), grid.context)
    labels = dict(batch.labels)
    for head in heads:
        if head.name not in labels:
            continue
        assert head.reads != "whole", "refused by llmscale.layout"
        if head.reads == "each":
            labels[head.name] = ranks.own(labels[head.name])
        elif ranks.rank:
            labels[head.name] = no_labels(labels[head.name])
    own = ranks.own(batch.targets), ranks.own(batch.weights)
    return replace(batch, targets=own[0], weights=own[1], labels=labels)
