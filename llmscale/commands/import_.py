"""`llmscale import`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo


@click.command("import")
@click.argument("folder", metavar="HF_DIR", type=PATH)
@click.argument("out", type=PATH)
@click.option("--tokenizer", type=PATH, help="Folder of the tokenizer's files, or `bytes`; HF_DIR.")
@click.option("--allow-pickle", is_flag=True, help="Read pytorch_model.bin where there is no safetensors file.")
@click.option("--new-head", is_flag=True, help="Draw the head's tensors that HF_DIR lacks, as a fresh model's.")
@click.option("--base", type=PATH, help="Checkpoint or run that HF_DIR, a PEFT adapter, belongs to.")
def import_model(
    folder: Path, out: Path, tokenizer: Path | None, allow_pickle: bool, new_head: bool, base: Path | None
) -> None:
    """Make the checkpoint OUT (weights, tokenizer, config) of a Hugging Face directory, or of a PEFT adapter and the
    checkpoint that it belongs to."""
    if base is not None:
        from llmscale.hugging_face.adapting import import_adapter

        if tokenizer is not None or allow_pickle or new_head:
            raise click.UsageError(
                "--base takes tokenizer and heads from the base; leave --tokenizer, --allow-pickle and --new-head out"
            )
        lines = import_adapter(folder, out, base)
    else:
        from llmscale.hugging_face.importing import import_directory

        lines = import_directory(folder, out, allow_pickle=allow_pickle, tokenizer=tokenizer, new_head=new_head)
    for line in lines:
        echo(line)
