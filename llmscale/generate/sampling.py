"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.base.random import uniforms
from llmscale.generate.settings import Settings


def choose(logits: Tensor, settings: Settings, draws: Tensor | None = None) -> Tensor:
    """Next tokens: the most probable ones, or samples.

    Args:
        logits: (B, V), after `penalized`.
        draws: (B,) fp64 numbers in [0, 1), one for each row; not needed for a temperature of 0.

    Returns:
        (B,) int64.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    assert draws is not None
    # Inverse of the distribution function: a row's token depends on its own draw and probabilities alone.
    sums = probabilities(logits, settings).double().cumsum(dim=-1)
    total = sums[:, -1]
    # The first token whose sum is above the draw; never one of probability 0, which adds nothing to the sum.
    below = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, below[:, None], right=True)[:, 0]


def probabilities(logits: Tensor, settings: Settings) -> Tensor:
    """What is sampled from: (B, V) logits to (B, V) fp32, each row summing to 1; needs a temperature above 0."""
    logits = logits.float() / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        # A token stays when those before it do not yet reach top_p, so that at least one does.
        surplus = ordered.cumsum(dim=-1) - ordered >= settings.top_p
        logits = logits.masked_fill(torch.zeros_like(surplus).scatter(1, order, surplus), -torch.inf)
    return logits.softmax(dim=-1)


def penalized(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores (B, V), logits or log-probabilities, with the repetition penalty on the tokens of `seen` (B, V) bool."""
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def draws_of(prompts: Sequence[Sequence[int]], settings: Settings) -> Tensor:
    """Numbers to sample with, (prompts, max_new_tokens) fp64 in [0, 1).

    Those of a prompt depend on its tokens and the seed, and on how many equal ones precede it, so that copies of a
    prompt are continued differently; but not on what else there is.
    """
    copies: dict[tuple[int, ...], int] = {}
    rows = []
    for prompt in prompts:
        key = tuple(prompt)
        copies[key] = copies.get(key, -1) + 1
        rows.append(torch.from_numpy(uniforms(settings.max_new_tokens, "generate", settings.seed, copies[key], *key)))
    return torch.stack(rows)
