"""Tokens that must or must not come at a place, as a model's generation_config.json has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmscale.generate.prompts import Context
from llmscale.generate.settings import Settings


class Rules:
    """What the settings bar and force, by the rules of transformers' logits processors."""

    def __init__(
        self, settings: Settings, contexts: Sequence[Context], ends: Sequence[int], limits: Sequence[int]
    ) -> None:
        """
        Args:
            contexts: of a batch.
            ends: tokens that end a text.
            limits: most new tokens of each context.
        """
        self._settings = settings
        self._ends = list(ends)
        self._limits = list(limits)
        self._read = [len(context.tokens) for context in contexts]

    @classmethod
    def of(
        cls, settings: Settings, contexts: Sequence[Context], ends: Sequence[int], limits: Sequence[int]
    ) -> Rules | None:
        """The rules of a batch; None where any token may come anywhere."""
        asked = (
            settings.suppress_tokens, settings.begin_suppress_tokens, settings.last_tokens, settings.min_length,
            settings.min_new_tokens, settings.first_token is not None,
        )  # fmt: skip
        return cls(settings, contexts, ends, limits) if any(asked) else None

    def applied(self, scores: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        """Scores, logits or log-probabilities, of the next token, with -inf where none may come.

        Args:
            scores: (B, V).
            numbers: the context that each row continues.
            step: new tokens that there are already.
        """
        settings, scores = self._settings, scores.clone()
        for row, number in enumerate(numbers):
            read = self._read[number]
            if step < max(settings.min_new_tokens, settings.min_length - read):
                scores[row, self._ends] = -torch.inf
            if settings.first_token is not None and read + step == 1:
                _force(scores[row], [settings.first_token])
            if settings.last_tokens and step + 1 == self._limits[number]:
                _force(scores[row], settings.last_tokens)
            # A forced first token of an encoder-decoder comes before the text.
            begins = 1 if settings.first_token is not None and read == 1 else 0
            if step == begins:
                scores[row, list(settings.begin_suppress_tokens)] = -torch.inf
        scores[:, list(settings.suppress_tokens)] = -torch.inf
        return scores


def _force(row: Tensor, tokens: Sequence[int]) -> None:
    row.fill_(-torch.inf)
    row[list(tokens)] = 0
