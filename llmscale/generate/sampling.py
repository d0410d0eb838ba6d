"""Choosing the next token from logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data_pipeline.errors import UserError

LEAST_TEMPERATURE = 1e-6
"""Below it, logits divided by the temperature might leave the range of fp32."""


class Sampler:
    """Greedy choice or sampling, reproducible by a seed of its own."""

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> None:
        """
        Args:
            temperature: divides the logits; 0 always takes the most probable token.
            top_k: keep only the k most probable tokens; 0 keeps all.
            top_p: keep the fewest most probable tokens whose probabilities reach this sum (Holtzman et al. 2020,
                section 3.1), after temperature and top_k; 1 keeps all.
            seed: decides what is drawn.

        Raises:
            UserError: a setting is out of range.
        """
        if not (temperature == 0 or LEAST_TEMPERATURE <= temperature < math.inf):
            raise UserError(
                f"temperature is {temperature}, but must be 0 (greedy) or a finite number from {LEAST_TEMPERATURE} on"
            )
        if top_k < 0:
            raise UserError(f"top_k is {top_k}, but must be 0 (all tokens) or more")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p is {top_p}, but must be above 0 and at most 1")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> Tensor:
        """Next tokens (B,) int64 from logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        drawn = torch.multinomial(self.probabilities(logits).cpu(), 1, generator=self._generator)
        return drawn[:, 0].to(logits.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is sampled from: (B, V) fp32, each row summing to 1; needs a temperature above 0."""
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token stays when those before it do not yet reach top_p, so that at least one does.
            surplus = ordered.cumsum(dim=-1) - ordered >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(surplus).scatter(1, order, surplus), -torch.inf)
        return logits.softmax(dim=-1)
