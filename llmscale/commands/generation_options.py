"""Options that `llmscale generate` and `llmscale chat` share."""

from __future__ import annotations

from typing import Any

import click


def generation_options(command: Any) -> Any:
    """Options that `generate` and `chat` share."""
    for option in reversed(
        (
            click.option(
                "--max-new-tokens",
                type=int,
                help="Most tokens to add.  [default: the model's, or 128, or what its context has room for]",
            ),
            click.option(
                "--temperature", type=float, help="0: always the most probable token.  [default: the model's, or 0.8]"
            ),
            click.option(
                "--top-k", type=int, help="Only the k most probable tokens.  [default: the model's, or 0: all]"
            ),
            click.option(
                "--top-p", type=float, help="Nucleus sampling threshold; 1 disables it.  [default: the model's, or 1]"
            ),
            click.option("--repetition-penalty", type=float, help="CTRL's.  [default: the model's, or 1: none]"),
            click.option("--stop", multiple=True, help="A text that ends the generation; repeatable."),
            click.option("--stop-token", "stop_tokens", type=int, multiple=True, help="A token id that does."),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
        )
    ):
        command = option(command)
    return command
