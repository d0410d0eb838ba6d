"""`llmscale export`."""

from __future__ import annotations

from pathlib import Path

import click

from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("folder", metavar="HF_DIR", type=PATH)
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--shard-size", default="5GB", show_default=True, help="Most bytes of a file of tensors.")
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer out.")
@click.option("--adapter", is_flag=True, help="Write the low-rank factors alone, in PEFT's format.")
@click.option(
    "--largest-difference",
    type=click.FloatRange(min=0),
    help="Largest change of the outputs by merging low-rank factors, as a share; 1e-4 in fp32, else 5e-2.",
)
def export_model(
    checkpoint: Path,
    folder: Path,
    dtype: str,
    shard_size: str,
    no_tokenizer: bool,
    adapter: bool,
    largest_difference: float | None,
) -> None:
    """Make the Hugging Face directory HF_DIR of CHECKPOINT (or a run directory).

    Low-rank factors (finetune.lora) are merged into the weights, or with --adapter written alone.
    """
    if adapter:
        from llmscale.hugging_face.adapting import export_adapter

        lines = export_adapter(checkpoint, folder)
    else:
        from llmscale.hugging_face.exporting import export_checkpoint

        lines = export_checkpoint(
            checkpoint,
            folder,
            dtype=dtype,
            shard_size=shard_size,
            with_tokenizer=not no_tokenizer,
            largest_difference=largest_difference,
        )
    for line in lines:
        echo(line)
