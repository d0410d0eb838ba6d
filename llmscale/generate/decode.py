"""Continuing a prompt token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from llmscale.generate.sampling import Sampler
from llmscale.model import Transformer
from llmscale.model.cache import KeyValueCache


def generate(
    model: Transformer, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int = 128, sampler: Sampler | None = None
) -> str:
    """The continuation of `prompt`, without the prompt; see `stream`."""
    return "".join(stream(model, tokenizer, prompt, max_new_tokens=max_new_tokens, sampler=sampler))


def stream(
    model: Transformer, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int = 128, sampler: Sampler | None = None
) -> Iterator[str]:
    """Pieces of the continuation as they are made; together they are the decoded new tokens.

    The prompt follows the end-of-document token, as documents do in training; so an empty prompt begins a document.

    Args:
        max_new_tokens: most tokens to add; the end of the document may come first.
        sampler: greedy when not given.

    Raises:
        UserError: prompt and new tokens exceed the model's context.
    """
    end = tokenizer.special["eos"]
    context = [end, *tokenizer.encode(prompt)]
    limit = model.config.max_positions
    if len(context) >= limit:
        raise UserError(
            f"the prompt has {len(context)} tokens, but the model's context is {limit}; shorten the prompt to"
            f" {limit - 1} or less"
        )
    if len(context) + max_new_tokens > limit:
        raise UserError(
            f"the prompt's {len(context)} tokens and {max_new_tokens} new ones exceed the model's context of {limit};"
            f" shorten the prompt, or set --max-new-tokens to {limit - len(context)} or less"
        )
    tokens: list[int] = []
    shown = ""
    for token in new_tokens(model, context, max_new_tokens, sampler or Sampler(temperature=0), stop={end}):
        tokens.append(token)
        text = tokenizer.decode(tokens)
        # A character may be spread over several tokens: wait until it is whole.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(tokens)[len(shown) :]
    if rest:
        yield rest


@torch.inference_mode()
def new_tokens(
    model: Transformer, context: list[int], count: int, sampler: Sampler, stop: set[int] | None = None
) -> Iterator[int]:
    """At most `count` token ids that follow `context`, ending before a token of `stop`."""
    parameter = next(model.parameters())
    capacity = len(context) + count
    cache = KeyValueCache(model.config, 1, capacity, parameter.dtype, parameter.device)
    inputs = torch.tensor([context], device=parameter.device)
    for _ in range(count):
        hidden = model(inputs, cache=cache).hidden
        chosen = sampler.choose(model.head(hidden[:, -1]))
        token = int(chosen)
        if stop and token in stop:
            return
        yield token
        inputs = chosen[:, None]
