"""Beam search, by the rules of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.base.errors import UserError
from llmscale.generate.prompts import Context
from llmscale.generate.rules import Rules
from llmscale.generate.sampling import penalized
from llmscale.generate.settings import Settings
from llmscale.generate.state import State, seen_tokens
from llmscale.model import Transformer

IMPOSSIBLE = -1e9
"""Score of what must not be chosen."""
NOTHING = -1
"""In place of a token that has not come."""


class Found(NamedTuple):
    """A finished hypothesis."""

    tokens: list[int]
    """Without the token that ended it."""
    end: int | None
    """That token; None where it ended for another reason."""


@dataclass
class Hypotheses:
    """K token sequences of each of P prompts, best first."""

    tokens: Tensor
    """(P, K, max_new_tokens) int64, `NOTHING` after the last one."""
    scores: Tensor
    """(P, K) fp32."""
    lengths: Tensor
    """(P, K) int64 tokens that count: all but the one that ended it."""

    def take(self, places: Tensor) -> Hypotheses:
        """Those at (P, K) places."""
        wide = places[..., None].expand(-1, -1, self.tokens.shape[-1])
        return Hypotheses(self.tokens.gather(1, wide), self.scores.gather(1, places), self.lengths.gather(1, places))

    def joined(self, other: Hypotheses) -> Hypotheses:
        """These, then the others."""
        return Hypotheses(
            torch.cat([self.tokens, other.tokens], 1),
            torch.cat([self.scores, other.scores], 1),
            torch.cat([self.lengths, other.lengths], 1),
        )


@torch.inference_mode()
def beam_search(
    model: Transformer,
    contexts: Sequence[Context],
    settings: Settings,
    ends: Sequence[int],
    stopped: Callable[[int, list[int]], bool] | None = None,
    limits: Sequence[int] | None = None,
) -> list[Found]:
    """The best hypothesis of each context.

    Hypotheses are ranked by log-probability / length^length_penalty. As long as what is finished may still be beaten
    by what is not (`settings.early_stopping`), the search goes on.

    Args:
        ends: tokens that finish a hypothesis.
        stopped: whether the tokens of a hypothesis of context i finish it for another reason.
        limits: most new tokens of each context, none above `settings.max_new_tokens`; that for all when not given.

    Raises:
        UserError: more beams than the vocabulary can fill.
    """
    wanted = max(2, 1 + len(ends)) * settings.beams
    if wanted > model.vocab_size:
        raise UserError(
            f"beams is {settings.beams}, which compares {wanted} tokens at each step, but the vocabulary has"
            f" {model.vocab_size}; set beams to {max(1, model.vocab_size * settings.beams // wanted)} or less"
        )
    limits = limits or [settings.max_new_tokens] * len(contexts)
    search = _Search(model, contexts, settings, ends, stopped, wanted, limits)
    for step in range(max(limits)):
        if not search.advance(step):
            break
    return search.best()


class _Search:
    """Beams of all prompts, and what is finished of them."""

    def __init__(
        self,
        model: Transformer,
        contexts: Sequence[Context],
        settings: Settings,
        ends: Sequence[int],
        stopped: Callable[[int, list[int]], bool] | None,
        wanted: int,
        limits: Sequence[int],
    ) -> None:
        prompts, beams = len(contexts), settings.beams
        self.settings = settings
        self.contexts = contexts
        self.stopped = stopped
        self.wanted = wanted
        self.state = State(model, contexts, max(limits), copies=beams)
        device = self.state.device
        self.rules = Rules.of(settings, contexts, ends, limits)
        self.limits = torch.tensor(limits, device=device)[:, None]
        self.longest = torch.tensor([[limit**settings.length_penalty] for limit in limits], device=device)
        tokens = torch.full((prompts, beams, max(limits)), NOTHING, device=device)
        lengths = torch.zeros(prompts, beams, dtype=torch.int64, device=device)
        nothing = torch.full((prompts, beams), IMPOSSIBLE, device=device)
        self.done = Hypotheses(tokens.clone(), nothing.clone(), lengths.clone())
        self.running = Hypotheses(tokens, nothing, lengths)
        # All beams begin alike, so that at first only one of them counts.
        self.running.scores[:, 0] = 0
        self.finished = torch.zeros(prompts, beams, dtype=torch.bool, device=device)
        self.hopeful = torch.ones(prompts, 1, dtype=torch.bool, device=device)
        self.offsets = torch.arange(prompts, device=device)[:, None] * beams
        self.ends = torch.tensor(ends, device=device)
        self.leading = torch.arange(wanted, device=device) < beams
        self.seen: Tensor | None = None

    def advance(self, step: int) -> bool:
        """Give every beam its next token; whether the search goes on."""
        candidates, parents, hits = self._candidates(step)
        open_scores = candidates.scores + hits * IMPOSSIBLE
        following = open_scores.topk(self.settings.beams).indices
        self.running = candidates.take(following)
        self.running.scores = open_scores.gather(1, following)
        self._finish(candidates, hits, step + 1)
        self.hopeful = self.hopeful & self._can_improve(step + 1) & ~hits.all(1, keepdim=True)
        if self.settings.early_stopping is True and bool(self.finished.all()):
            return False
        if not bool(self.hopeful.any()):
            return False
        rows = (parents.gather(1, following) + self.offsets).flatten()
        self.state.keep(rows, same_prompt=True)
        last = self.running.tokens[:, :, step].flatten()
        if self.seen is not None:
            self.seen = self.seen[rows].scatter_(1, last[:, None], True)
        self.state.append(last)
        return True

    def best(self) -> list[Found]:
        """What each context has come to."""
        found = []
        for row, length in zip(self.done.tokens[:, 0].tolist(), self.done.lengths[:, 0].tolist(), strict=True):
            end = row[length] if length < len(row) else NOTHING
            found.append(Found(row[:length], None if end == NOTHING else end))
        return found

    def _candidates(self, step: int) -> tuple[Hypotheses, Tensor, Tensor]:
        """The best continuations (P, wanted), the beams that they continue, and which of them are finished."""
        scores = self.state.read().float().log_softmax(-1)
        if self.settings.repetition_penalty != 1:
            if self.seen is None:
                seen = seen_tokens(self.contexts, scores.shape[-1], scores.device)
                self.seen = seen.repeat_interleave(self.settings.beams, 0)
            scores = penalized(scores, self.seen, self.settings.repetition_penalty)
        if self.rules is not None:
            rows = [number for number in range(len(self.contexts)) for _ in range(self.settings.beams)]
            scores = self.rules.applied(scores, rows, step)
        width = scores.shape[-1]
        totals = scores.view(len(self.contexts), -1, width) + self.running.scores[..., None]
        best, places = totals.flatten(1).topk(self.wanted)
        parents, chosen = places // width, places % width
        candidates = self.running.take(parents)
        candidates.tokens[:, :, step] = chosen
        candidates.scores = best
        ended = torch.isin(chosen, self.ends)
        candidates.lengths = candidates.lengths + ~ended
        hits = ended | (step + 1 >= self.limits)
        if self.stopped is not None:
            rows = candidates.tokens[:, :, : step + 1].tolist()
            answers = [[self.stopped(number, tokens) for tokens in row] for number, row in enumerate(rows)]
            hits = hits | torch.tensor(answers, device=hits.device)
        return candidates, parents, hits

    def _finish(self, candidates: Hypotheses, hits: Tensor, length: int) -> None:
        """Keep the best of what was finished before and of the leading candidates that are finished now."""
        complete = hits & self.leading
        full = self.finished.all(1, keepdim=True) & (self.settings.early_stopping is True)
        candidates.scores = candidates.scores / length**self.settings.length_penalty
        for barred in (full, ~self.hopeful, ~complete):
            candidates.scores = candidates.scores + barred * IMPOSSIBLE
        merged = self.done.joined(candidates)
        winners = merged.scores.topk(self.settings.beams).indices
        self.done = merged.take(winners)
        self.finished = torch.cat([self.finished, complete], 1).gather(1, winners)

    def _can_improve(self, length: int) -> Tensor:
        """(P, 1): whether the best running hypothesis may still beat the worst finished one."""
        settings = self.settings
        divisor: float | Tensor = length**settings.length_penalty
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            divisor = self.longest
        possible = self.running.scores[:, :1] / divisor
        worst = torch.where(self.finished, self.done.scores.amin(1, keepdim=True), IMPOSSIBLE)
        return (possible > worst).any(-1, keepdim=True)
