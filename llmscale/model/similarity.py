"""How near the vectors of texts are to each other: the loss of contrastive learning, and ranks in a search."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(vectors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """(N, N * (R - 1)): each query's similarity to all positives, then to all hard negatives; -inf where a candidate is
    no negative of it.

    No negative is a text that equals the query or its positive, nor the positive of an equal query.

    Args:
        vectors: (N, R, channels): query, positive and hard negatives of each sample.
        keys: (N, R) int64, equal for equal texts; below 0 for padding samples.
        temperature: what products are divided by.
    """
    count = len(vectors)
    logits = vectors[:, 0] @ vectors[:, 1:].transpose(0, 1).flatten(0, 1).T / temperature
    candidates, queries, positives = keys[:, 1:].T.flatten(), keys[:, 0, None], keys[:, 1, None]
    excluded = (candidates == queries) | (candidates == positives) | (candidates < 0)
    excluded[:, :count] |= keys[:, 0] == queries
    excluded[:, :count].fill_diagonal_(False)
    return logits.masked_fill(excluded, -torch.inf)


def contrastive_losses(vectors: Tensor, keys: Tensor, temperature: float, symmetric: bool) -> Tensor:
    """(N,) InfoNCE of each sample (van den Oord et al. 2018, equation 4) in nats; 0 for padding samples.

    Args:
        vectors, keys, temperature: as in `similarities`.
        symmetric: the mean with that of each positive among all queries.
    """
    own = torch.arange(len(vectors), device=vectors.device)
    losses = F.cross_entropy(similarities(vectors, keys, temperature), own, reduction="none")
    if symmetric:
        back = similarities(vectors[:, [1, 0]], keys[:, [1, 0]], temperature)
        losses = (losses + F.cross_entropy(back, own, reduction="none")) / 2
    return losses * (keys[:, 0] >= 0)


def positions_of_positives(vectors: Tensor, keys: Tensor) -> Tensor:
    """(N,) the place, from 1, of each query's positive among its candidates, the most similar first; of equal
    similarities it comes last."""
    found = similarities(vectors, keys, 1.0)
    return (found >= found.diagonal()[:, None]).sum(1)
