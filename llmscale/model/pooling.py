"""One vector of a text, out of the hidden states of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(hidden: Tensor, real: Tensor | None, pooling: str) -> Tensor:
    """(B, channels) of hidden states (B, T, channels): the first token's, the last one's, or the mean over the tokens.

    `real`: (B, T) booleans, False for padding, which follows the text; the first token does without.
    """
    if pooling == "first":
        return hidden[:, 0]
    assert real is not None
    if pooling == "last":
        last = real.sum(1).clamp(min=1) - 1
        return hidden[torch.arange(len(last), device=last.device), last]
    return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
