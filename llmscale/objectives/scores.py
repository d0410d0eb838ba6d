"""The log-probabilities of the tokens that a batch asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.model import Transformer

ROWS = 16
"""The head's product has a multiple of so many rows. Products of few rows are left to other kernels, which round
otherwise: a token's score would depend on how many are asked for beside it."""


def token_scores(model: Transformer, hidden: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Scores of tokens at positions.

    The head sees the positions that are asked for alone, each once.

    Args:
        hidden: (B, T, hidden_size), what the model made of a batch.
        places: (B, K) int64, as `Batch.scored_places`.
        tokens: (B, K) int64, as `Batch.scored_tokens`.

    Returns:
        (2, B, K) of at least fp32: log-probabilities in nats, and 1 where no token is more probable; 0 for padding.
    """
    asked = places >= 0
    flat = (torch.arange(len(places), device=places.device)[:, None] * hidden.shape[1] + places)[asked]
    unique, inverse, counts = flat.unique(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    order = inverse.argsort(stable=True)
    column = torch.empty_like(order)
    column[order] = torch.arange(len(order), device=order.device) - first[inverse[order]]
    rows = -(-max(len(unique), 1) // ROWS) * ROWS
    targets = torch.zeros(rows, int(counts.max()) if len(counts) else 1, dtype=torch.int64, device=tokens.device)
    targets[inverse, column] = tokens[asked]
    chosen = hidden.new_zeros(rows, hidden.shape[-1])
    chosen[: len(unique)] = hidden.flatten(0, 1)[unique]
    # The head runs where nothing is asked too: ranks that share its weights wait for each other there.
    scores = model.head(chosen, targets, scored=True)
    result = torch.zeros(2, *places.shape, dtype=scores.dtype, device=scores.device)
    result[:, asked] = scores[:, inverse, column]
    return result


def own_places(batch: Batch, rank: int, ranks: int) -> Tensor:
    """`batch.scored_places` (B, K) among the positions that one of several context-parallel ranks has; -1 for those of
    the others."""
    assert batch.scored_places is not None
    size = batch.inputs.shape[1] // ranks
    places = batch.scored_places - rank * size
    return places.masked_fill((batch.scored_places < 0) | (places < 0) | (places >= size), -1)
