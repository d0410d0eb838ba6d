"""`llmscale generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmscale.commands.device_options import chosen, device_options
from llmscale.commands.generation_options import generation_options
from llmscale.commands.paths import PATH


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--prompt", "prompts", multiple=True, help="Text to continue, or to read as the source; repeatable.")
@click.option("--prompts", "file", type=PATH, help="A file with a prompt a line; empty lines are none.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line: prompt, text, tokens, finish.")
@generation_options
@click.option("--beams", type=int, help="Hypotheses of beam search.  [default: the model's, or 1: none]")
@click.option(
    "--length-penalty", type=float, help="Beam search: above 0 favours long texts.  [default: the model's, or 1]"
)
@click.option("--batch", default=8, show_default=True, help="Most prompts in a forward pass.")
@device_options
@click.option("--raw", is_flag=True, help="Put no special token in front of a prompt or behind it.")
def generate(
    checkpoint: Path,
    prompts: tuple[str, ...],
    file: Path | None,
    as_json: bool,
    raw: bool,
    device: str,
    dtype: str,
    **options: Any,
) -> None:
    """Continue prompts with the model of CHECKPOINT (or a run directory). Beam search does not sample."""
    where = chosen(device, dtype)
    from llmscale.generate.commands import generate_texts

    generate_texts(checkpoint, prompts, file, as_json, options, raw, *where)
