"""One vector of a text, out of the hidden states of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(hidden: Tensor, padding_mask: Tensor | None, pooling: str) -> Tensor:
    """(B, channels) of hidden states (B, T, channels): the first token's, the last one's, or the mean over the tokens.

    `padding_mask`: (B, T) booleans, False for padding, which follows the text; the first token does without.
    """
    if pooling == "first":
        return hidden[:, 0]
    assert padding_mask is not None
    if pooling == "last":
        last = padding_mask.sum(1).clamp(min=1) - 1
        return hidden[torch.arange(len(last), device=last.device), last]
    return (hidden * padding_mask[..., None]).sum(1) / padding_mask.sum(1, keepdim=True).clamp(min=1)
