"""`llmscale generate`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.checkpoint.model import load_model
from llmscale.generate.decode import stream
from llmscale.generate.sampling import Sampler


def generate_text(
    checkpoint: Path, prompt: str, max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    """Print the prompt and its continuation as it is made.

    Raises:
        UserError: no intact checkpoint, a setting out of range, or a prompt that exceeds the context.
    """
    sampler = Sampler(temperature, top_k, top_p, seed)
    trained = load_model(checkpoint)
    pieces = stream(trained.model, trained.tokenizer, prompt, max_new_tokens=max_new_tokens, sampler=sampler)
    first = next(pieces, "")
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
