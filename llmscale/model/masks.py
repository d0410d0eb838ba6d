"""Which token sees which: masks of self-attention and cross-attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionMask:
    """What limits who sees whom in one forward pass, apart from the kind of layer."""

    past: int
    """Tokens that the cache holds already."""
    length: int
    """New tokens."""
    segment_ids: Tensor | None = None
    """(B, T) numbers of the document: tokens see their own document only."""
    prefix_lengths: Tensor | None = None
    """(B,) tokens from the start that all see each other."""
    padding_mask: Tensor | None = None
    """(B, past + T) booleans: False for padding tokens, which nobody sees but themselves."""
    shared_lengths: Tensor | None = None
    """(B,) tokens from the start that the tokens of every document see."""

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places of the queries (T, 1) and of the keys (S,) in the sequence."""
        keys = torch.arange(self.past + self.length, device=device)
        return keys[self.past :, None], keys

    @property
    def new_tokens(self) -> Tensor | None:
        """(B, length) of `padding_mask`."""
        return None if self.padding_mask is None else self.padding_mask[:, self.past :]

    def mask(self, *, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
        """(B or 1, 1, T, S) booleans, True where a query may see a key.

        None where a kernel needs no mask: all keys, or in a causal layer without cached tokens those up to the query.
        """
        total = self.past + self.length
        windowed = window is not None and total > (window if causal else window // 2 + 1)
        parts = (self.segment_ids, self.prefix_lengths, self.padding_mask)
        limited = any(part is not None for part in parts) or windowed
        if not limited and (not causal or self.past == 0 or self.length == 1):
            return None
        queries, keys = self.places(device)
        allowed = (queries >= keys if causal else (keys >= 0).expand(self.length, -1))[None, None]
        if self.prefix_lengths is not None:
            allowed = allowed | (keys < self.prefix_lengths[:, None, None, None])
        if windowed:
            assert window is not None
            near = queries - keys < window if causal else (queries - keys).abs() <= window // 2
            allowed = allowed & near
        if self.segment_ids is not None:
            together = self.segment_ids[:, None, :, None] == self.segment_ids[:, None, None, :]
            if self.shared_lengths is not None:
                together = together | (keys < self.shared_lengths[:, None, None, None])
            allowed = allowed & together
        if self.padding_mask is not None:
            # A padding token sees itself, since the softmax of nothing is not a number.
            allowed = (allowed & self.padding_mask[:, None, None, :]) | (queries == keys)
        return allowed


def cross_mask(padding_mask: Tensor | None) -> Tensor | None:
    """Who sees which token of the encoder: (B, S) booleans to (B, 1, 1, S); all of them where there is only padding."""
    if padding_mask is None:
        return None
    return (padding_mask | ~padding_mask.any(dim=1, keepdim=True))[:, None, None, :]
