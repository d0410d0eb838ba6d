"""Mixture of experts: every token goes to a few of many feed-forward layers (Shazeer et al. 2017).

Whatever looks at several tokens (capacity, losses) looks at those of one sequence, so that how a batch is cut into
micro batches and ranks changes nothing. Where documents of a sequence are separate, capacity looks at one document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.feed_forward import ACTIVATIONS
from llmscale.model.grouped import grouped_product
from llmscale.model.linear import Addition, Linear


class ExpertLinear(nn.Module):
    """The same projection of all experts: weight (experts, outputs, inputs), bias (experts, outputs) or None."""

    low_rank: Addition | None = None
    """As that of `Linear`."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None

    def forward(self, tokens: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs), where token i belongs to `expert[i]` (N,), and those of expert e end before
        `ends[e]` (experts,) int32."""
        projected = self.project(tokens, expert, ends)
        return projected if self.bias is None else projected + self.bias[expert]

    def project(self, tokens: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """`forward` without the bias."""
        projected = grouped_product(tokens, self.weight, ends)
        if self.low_rank is None:
            return projected
        return self.low_rank.grouped(self, tokens, projected, expert, ends)


class Experts(nn.Module):
    """A router and its experts, in place of a feed-forward layer."""

    least_rows = 0
    """Padding rows of the tokens of each expert; see `filled_experts`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.settings = config.experts
        count, inner = self.settings.count, config.expert_channels
        self.activation = ACTIVATIONS[config.activation]
        self.router = Linear(config.hidden_size, count, bias=False)
        sigmoid = self.settings.scoring == "sigmoid"
        self.correction_bias = nn.Parameter(torch.empty(count)) if sigmoid else None
        self.up = ExpertLinear(count, config.hidden_size, inner, config.bias)
        self.gate = ExpertLinear(count, config.hidden_size, inner, config.bias) if config.gated else None
        self.down = ExpertLinear(count, inner, config.hidden_size, config.bias)

    def forward(
        self, hidden: Tensor, padding_mask: Tensor | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix the experts of each token.

        Args:
            hidden: (B, T, hidden_size).
            padding_mask: (B, T) booleans, False for padding, which takes no room and does not count.
            segment_ids: (B, T) number of the document that a token is part of; the tokens of a document are side by
                side, and each document has a capacity of its own. None: the sequence is one document.

        Returns:
            (B, T, hidden_size), and each sequence's router loss (B,) in fp32.
        """
        logits = self.router(hidden).float()
        if self.correction_bias is None:
            probabilities = logits.softmax(dim=-1)
            weights, chosen = probabilities.topk(self.settings.per_token, dim=-1)
        else:
            scores = logits.sigmoid()
            probabilities = scores / scores.sum(dim=-1, keepdim=True)
            weights, chosen = self._best(scores, self.correction_bias.float())
        if self.settings.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if self.settings.scale != 1:
            weights = weights * self.settings.scale
        counted = torch.ones(hidden.shape[:2], device=hidden.device) if padding_mask is None else padding_mask.float()
        if self.training and self.settings.capacity_factor is not None:
            weights = weights * self._within_capacity(chosen, counted, segment_ids)
        mixed = self._mix(hidden.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1).to(hidden.dtype))
        return mixed.view_as(hidden), self._loss(logits, probabilities, chosen, counted)

    def _best(self, scores: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, experts) scores and the (experts,) bias of choice to the (B, T, k) scores and numbers of the best
        experts, within the best groups (DeepSeek-V3, sections 2.1.2 and 3.4; code, `Gate`)."""
        settings = self.settings
        choice = scores + bias
        if settings.groups > 1:
            groups = choice.unflatten(-1, (settings.groups, -1))
            best = groups.topk(2, dim=-1).values.sum(-1).topk(settings.groups_per_token, dim=-1).indices
            closed = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, False)
            choice = groups.masked_fill(closed[..., None], -torch.inf).flatten(-2)
        chosen = choice.topk(settings.per_token, dim=-1).indices
        # The bias only chooses; a gradient of 0 is one that ZeRO need not wait for.
        return scores.gather(-1, chosen) + 0.0 * bias[chosen], chosen

    def _mix(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(N, hidden_size) tokens, (N, k) experts and their weights to (N, hidden_size)."""
        count, each = self.settings.count, chosen.shape[1]
        flat = chosen.flatten()
        if self.least_rows:
            filling = torch.arange(count, device=flat.device).repeat_interleave(self.least_rows)
            flat = torch.cat([flat, filling])
            tokens = torch.cat([tokens, tokens.new_zeros(-(-len(filling) // each), tokens.shape[1])])
        order = flat.argsort(stable=True)
        outputs = self._compute(tokens[order // each], flat[order], F.one_hot(flat, count).sum(0))
        # Back into the order of the tokens by a gather, whose sum does not depend on the order of threads.
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        back = back[: chosen.numel()]
        return (outputs[back].unflatten(0, (-1, each)) * weights[..., None]).sum(1)

    def _compute(self, inputs: Tensor, expert: Tensor, counts: Tensor) -> Tensor:
        """(N, hidden_size) to the same shape, where token i belongs to `expert[i]` (N,), in ascending order, and
        `counts` (experts,) of them to each."""
        ends = counts.cumsum(0).to(torch.int32)
        inner = self.up(inputs, expert, ends)
        inner = (
            self.activation(inner) if self.gate is None else self.activation(self.gate(inputs, expert, ends)) * inner
        )
        return self.down(inner, expert, ends)

    def _within_capacity(self, chosen: Tensor, counted: Tensor, segment_ids: Tensor | None) -> Tensor:
        """(B, T, k) 1 where the expert has room, 0 where it is full.

        The capacity of an expert is ceil(capacity_factor x tokens x k / experts), where tokens are those of the
        document (of the sequence where documents are not separate). It is given out by position: all choices of a
        token, the most probable first, come before those of the next token. GShard (Lepikhin et al. 2021, algorithm
        1) instead serves the first choices of all tokens before any second choice, so that a later token's first
        choice displaces an earlier one's second.
        """
        settings = self.settings
        first, last = _document_ends(counted, segment_ids)
        tokens = counted.cumsum(1)
        tokens = tokens.gather(1, last) - (tokens - counted).gather(1, first)
        room = settings.capacity_factor * tokens * settings.per_token / settings.count  # type: ignore[operator]
        wanted = F.one_hot(chosen, settings.count) * counted[..., None, None].long()
        before = wanted.flatten(1, 2).cumsum(1).unflatten(1, chosen.shape[1:]) - wanted
        elsewhere = before[:, :, 0].gather(1, first[..., None].expand(-1, -1, settings.count))
        place = (before - elsewhere[:, :, None]).gather(-1, chosen[..., None])[..., 0]
        return (place < room.ceil()[..., None]).float()

    def _loss(self, logits: Tensor, probabilities: Tensor, chosen: Tensor, counted: Tensor) -> Tensor:
        """(B,): balance (Switch Transformer, equations 4 to 6, over all k choices) and z-loss (ST-MoE, equation 5)."""
        settings = self.settings
        tokens = counted.sum(1).clamp(min=1)
        routed = (F.one_hot(chosen, settings.count).sum(2) * counted[..., None]).sum(1) / tokens[:, None]
        share = (probabilities * counted[..., None]).sum(1) / tokens[:, None]
        balance = settings.count / settings.per_token * (routed * share).sum(-1)
        square = (logits.logsumexp(-1).square() * counted).sum(1) / tokens
        return settings.balance_weight * balance + settings.z_weight * square


@contextlib.contextmanager
def filled_experts(model: nn.Module, rows: int) -> Iterator[None]:
    """Within the block each expert computes so many rows more than it has tokens. How many tokens it has depends on the
    whole batch, and products of few rows are left to other kernels, which round otherwise."""
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    for module in experts:
        module.least_rows = rows
    try:
        yield
    finally:
        for module in experts:
            module.least_rows = 0


def _document_ends(counted: Tensor, segment_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, T) positions of the first and of the last token of each token's document; `counted`: (B, T)."""
    length = counted.shape[1]
    positions = torch.arange(length, device=counted.device).expand_as(counted)
    if segment_ids is None:
        return torch.zeros_like(positions), torch.full_like(positions, length - 1)
    border = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = F.pad(positions[:, 1:] * border, (1, 0)).cummax(1).values
    last = F.pad(positions[:, :-1].masked_fill(~border, length - 1), (0, 1), value=length - 1)
    return first, last.flip(1).cummin(1).values.flip(1)
