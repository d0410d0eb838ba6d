"""`llmscale chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmscale.commands.device_options import chosen, device_options
from llmscale.commands.generation_options import generation_options
from llmscale.commands.paths import PATH


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--system", help="A message that stands before the dialogue.")
@click.option(
    "--template",
    help="A chat template: the name of one of CHECKPOINT's, a file, or `none` for the default form; CHECKPOINT's own.",
)
@generation_options
@device_options
def chat(checkpoint: Path, system: str | None, template: str | None, device: str, dtype: str, **options: Any) -> None:
    """Talk with the instruction-tuned model of CHECKPOINT; a message a line, /reset starts over, /quit ends."""
    where = chosen(device, dtype)
    from llmscale.generate.chat import chat as talk

    talk(checkpoint, system, options, template, *where)
