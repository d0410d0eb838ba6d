"""`llmscale import`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.speech import echo


@click.command("import")
@click.argument("folder", metavar="HF_DIR", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer's files, or `bytes`; HF_DIR."
)
@click.option("--allow-pickle", is_flag=True, help="Read pytorch_model.bin where there is no safetensors file.")
@click.option("--new-head", is_flag=True, help="Draw the head's tensors that HF_DIR lacks, as a fresh model's.")
def import_model(folder: Path, out: Path, tokenizer: Path | None, allow_pickle: bool, new_head: bool) -> None:
    """Make the checkpoint OUT (weights, tokenizer, config) of a Hugging Face directory."""
    from llmscale.hugging_face.importing import import_directory

    lines = import_directory(folder, out, allow_pickle=allow_pickle, tokenizer=tokenizer, new_head=new_head)
    for line in lines:
        echo(line)
