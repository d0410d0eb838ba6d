"""Modules that a rank shares with others of its tensor-parallel group, in place of those of `llmscale.model`.

They keep names and parameters' meaning; `llmscale.parallel.tensor` puts them in. Each holds `ranks`, the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.model.attention.modules.core import SelfAttention
from llmscale.model.attention.modules.multi_head import CrossAttention
from llmscale.model.context import Context
from llmscale.model.cross_entropy import Rows, linear_cross_entropy, linear_scores
from llmscale.model.dropout import LayerDropout
from llmscale.model.experts import ExpertLinear, Experts
from llmscale.model.feed_forward import FeedForward
from llmscale.model.linear import Linear, linear
from llmscale.model.masks import AttentionMask
from llmscale.model.norms import RMSNorm
from llmscale.model.projections import Vocabulary
from llmscale.model.stack import Stack
from llmscale.model.transformer import Transformer
from llmscale.parallel import collectives
from llmscale.parallel.collectives import copy, total


@dataclass(frozen=True)
class TensorRanks:
    """A tensor-parallel group as its modules see it."""

    group: Any
    rank: int
    size: int
    sequence_parallel: bool
    """Whether between sub-layers each rank has its positions only, else all ranks have the same."""

    def enter(self, hidden: Tensor) -> Tensor:
        """The residual stream, as a sub-layer of which each rank computes a part needs it."""
        return (collectives.gather if self.sequence_parallel else copy)(hidden, self.group)

    def leave(self, partial: Tensor) -> Tensor:
        """The sum of what the ranks made, for the residual stream."""
        return (collectives.scatter if self.sequence_parallel else total)(partial, self.group)


class Shared(nn.Module):
    """Parameters that several ranks hold and whose gradient is the sum of theirs."""

    summed: Any
    """The group of these ranks."""

    def whole(self, parameter: Tensor | None) -> Tensor | None:
        """The parameter, with the gradient summed over the ranks."""
        return None if parameter is None else copy(parameter, self.summed)


class SharedLinear(Shared, Linear):
    """A projection to heads that other ranks have too."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.whole(self.weight), self.whole(self.bias)
        assert weight is not None
        if self.low_rank is None:
            return linear(input, weight, bias)
        projected = self.product(input, weight)
        return projected if bias is None else projected + bias


class SharedLayerNorm(Shared, nn.LayerNorm):
    """A norm of what only this rank has."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.whole(self.weight), self.whole(self.bias), self.eps)


class SharedRMSNorm(Shared, RMSNorm):
    """A norm of what only this rank has."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.whole(self.weight)
        assert weight is not None
        return self.normed(x, weight)


class SplitRMSNorm(Shared, RMSNorm):
    """A norm of which each rank has some channels, or several ranks the same ones."""

    ranks: TensorRanks

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # Each rank goes on with channels of its own, so that the gradient of the sum is a sum, too.
        squares = copy(total(wide.square().sum(-1, keepdim=True), self.ranks.group), self.ranks.group)
        mean = squares / (x.shape[-1] * self.ranks.size)
        assert self.eps is not None
        weight = self.weight if self.summed is None else self.whole(self.weight)
        return (wide * (mean + self.eps).rsqrt()).to(x.dtype) * weight


class RowLinear(Shared, Linear):
    """A projection of which each rank has some inputs: the products are summed, and the bias is added once."""

    ranks: TensorRanks

    def forward(self, input: Tensor) -> Tensor:
        projected = self.ranks.leave(self.product(input, self.weight))
        if self.bias is None:
            return projected
        return projected + (self.whole(self.bias) if self.ranks.sequence_parallel else self.bias)


class RowExpertLinear(Shared, ExpertLinear):
    """As `RowLinear`, of all experts; the sum over the ranks is left to `ShardedExperts`."""

    ranks: TensorRanks

    def forward(self, tokens: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        bias = self.whole(self.bias)
        partial = self.project(tokens, expert, ends)
        return partial if bias is None else partial + (bias / self.ranks.size)[expert]


class VocabularyEmbedding(nn.Embedding):
    """An embedding of which each rank has some rows."""

    ranks: TensorRanks

    def forward(self, input: Tensor) -> Tensor:
        places = input - self.ranks.rank * self.weight.shape[0]
        elsewhere = (places < 0) | (places >= self.weight.shape[0])
        found = F.embedding(places.masked_fill(elsewhere, 0), self.weight)
        return total(found.masked_fill(elsewhere[..., None], 0.0), self.ranks.group)


class SharedRows(Rows):
    """Rows of the vocabulary that the ranks of a group share."""

    def __init__(self, first: int, group: Any) -> None:
        self.first = first
        self._group = group

    def largest(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group)
        return values

    def total(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self._group)
        return values


class VocabularyHead(Vocabulary):
    """A head of which each rank has some rows of the vocabulary. Logits never come together for the loss (Shoeybi et
    al. 2019, section 3)."""

    ranks: TensorRanks

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        rows = SharedRows(self.ranks.rank * self.weight.shape[0], self.ranks.group)
        hidden = copy(hidden, self.ranks.group)
        return linear_cross_entropy(hidden, self.weight, targets, weights, self.vocab_size, self.bias, rows)

    def scores(self, hidden: Tensor, targets: Tensor) -> Tensor:
        rows = SharedRows(self.ranks.rank * self.weight.shape[0], self.ranks.group)
        return linear_scores(hidden, self.weight, targets, self.vocab_size, self.bias, rows)

    def project(self, hidden: Tensor) -> Tensor:
        logits = super().project(copy(hidden, self.ranks.group)).contiguous()
        found = [torch.empty_like(logits) for _ in range(self.ranks.size)]
        dist.all_gather(found, logits, group=self.ranks.group)
        return torch.cat(found, dim=-1)


class ShardedAttention(SelfAttention):
    """Attention of any kind of which each rank has some heads."""

    ranks: TensorRanks

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        if context.queries is not None:
            context = replace(context, queries=copy(context.queries, self.ranks.group))
        return super().forward(self.ranks.enter(hidden), context)


class ShardedCrossAttention(CrossAttention):
    """Cross-attention of which each rank has some heads."""

    ranks: TensorRanks

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        if context.memory is not None:
            context = replace(context, memory=copy(context.memory, self.ranks.group))
        return super().forward(self.ranks.enter(hidden), context)


class ShardedFeedForward(FeedForward):
    """A feed-forward layer of which each rank has some inner channels."""

    ranks: TensorRanks

    def forward(self, hidden: Tensor, dropout: LayerDropout | None = None) -> Tensor:
        return super().forward(self.ranks.enter(hidden), dropout)


class ShardedExperts(Experts):
    """Experts of which each rank has some inner channels; all ranks have the router, and route alike."""

    ranks: TensorRanks

    def forward(
        self, hidden: Tensor, padding_mask: Tensor | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.ranks.sequence_parallel:
            return super().forward(hidden, padding_mask, segment_ids)
        mixed, loss = super().forward(collectives.join(hidden, self.ranks.group), padding_mask, segment_ids)
        return collectives.split(mixed, self.ranks.group), loss

    def _mix(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        group = self.ranks.group
        return total(super()._mix(copy(tokens, group), chosen, copy(weights, group)), group)


class ShardedStack(Stack):
    """A stack of sharded blocks. What enters its first layer and what its last gives is whole on every rank."""

    ranks: TensorRanks

    def run(
        self, hidden: Tensor, positions: Tensor, attention_mask: AttentionMask, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not self.ranks.sequence_parallel:
            return super().run(hidden, positions, attention_mask, **others)
        if self.begins:
            hidden = collectives.split(hidden, self.ranks.group)
        hidden, loss = super().run(hidden, positions, attention_mask, **others)
        return (collectives.join(hidden, self.ranks.group) if self.ends else hidden), loss

    @property
    def heads(self) -> range:
        whole = super().heads
        size = len(whole) // self.ranks.size
        return whole[self.ranks.rank * size : (self.ranks.rank + 1) * size]


class ShardedTransformer(ShardedStack, Transformer):
    """A Transformer of sharded blocks."""
