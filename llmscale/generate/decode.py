"""Greedy decoding and sampling, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from llmscale.generate.prompts import Context
from llmscale.generate.rules import Rules
from llmscale.generate.sampling import choose, draws_of, penalized
from llmscale.generate.settings import Settings
from llmscale.generate.state import EXACT, ExactState, State, kept_lengths, seen_tokens
from llmscale.model import Transformer

Ended = Callable[[int, int], bool]
"""Given a context's number and its next token: whether that ends it. Asked exactly once for each token."""


@torch.inference_mode()
def decode(
    model: Transformer,
    contexts: Sequence[Context],
    settings: Settings,
    ended: Ended,
    draws: torch.Tensor | None = None,
    rules: Rules | None = None,
) -> Iterator[None]:
    """Continue all contexts as one batch, until each has ended or has `settings.max_new_tokens`; pauses at each token.

    Args:
        ended: is told every token; a context that ended is not continued.
        draws: (contexts, max_new_tokens) of `draws_of`, made here when not given; only for sampling.
        rules: which tokens may come where; all when not given.
    """
    least = EXACT if settings.exact else 1
    count = len(contexts)
    # Whoever only fills the batch up is read, but not asked.
    contexts = [*contexts, *[contexts[0]] * (least - count)]
    kind = ExactState if settings.exact else State
    state = kind(model, contexts[:count], settings.max_new_tokens)
    logits = state.read()
    numbers = [*range(count), *[0] * (len(contexts) - count)]
    running = [row < count for row in range(len(contexts))]
    if settings.temperature > 0:
        draws = draws_of([c.key for c in contexts[:count]], settings) if draws is None else draws
        draws = torch.cat([draws, draws[:1].expand(len(contexts) - count, -1)]).to(logits.device)
    seen = None
    if settings.repetition_penalty != 1:
        seen = seen_tokens(contexts, logits.shape[-1], logits.device)
    for step in range(settings.max_new_tokens):
        if seen is not None:
            logits = penalized(logits.float(), seen, settings.repetition_penalty)
        if rules is not None:
            logits = rules.applied(logits, numbers, step)
        chosen = choose(logits, settings, None if draws is None else draws[:, step])
        for row, token in enumerate(chosen.tolist()):
            if running[row] and ended(numbers[row], token):
                running[row] = False
        yield
        if step + 1 == settings.max_new_tokens or not any(running):
            return
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        state.append(chosen)
        if 2 * sum(running) <= len(running) > least:
            # Half of the work would be for nothing.
            going = [row for row, runs in enumerate(running) if runs]
            going += [row for row, runs in enumerate(running) if not runs][: max(0, least - len(going))]
            rows = torch.tensor(going, device=logits.device)
            state.keep(rows)
            draws = None if draws is None else draws[rows]
            seen = None if seen is None else seen[rows]
            numbers, running = [numbers[row] for row in going], [running[row] for row in going]
        logits = state.read()


def batches(contexts: Sequence[Context], size: int, exact: bool = False) -> Iterator[list[int]]:
    """Numbers of contexts, at most `size` at a time; those of one batch are about equally long.

    Args:
        exact: those of one batch are of the same `kept_lengths`.
    """
    order = sorted(range(len(contexts)), key=lambda number: len(contexts[number].key))
    groups: dict[tuple[int, int], list[int]] = {}
    for number in order:
        groups.setdefault(kept_lengths(contexts[number]) if exact else (0, 0), []).append(number)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
