"""`llmscale embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_pipeline.base.errors import UserError
from llmscale.commands.device_options import chosen, device_options
from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo

if TYPE_CHECKING:
    from llmscale.embeddings.embedder import Settings


def embedding_options(command: Any) -> Any:
    """What is made of a text's hidden states."""
    for option in reversed(
        (
            click.option("--pooling", help="first, last or mean, of the tokens.  [default: the model's, or mean]"),
            click.option(
                "--layers",
                default="-1",
                show_default=True,
                help="Whose hidden states, of several their mean: 0 is the embedding, -1 the last layer.",
            ),
            click.option(
                "--normalize/--no-normalize", default=None, help="Vectors of length 1.  [default: the model's, or yes]"
            ),
            click.option(
                "--overflow",
                type=click.Choice(["truncate", "refuse"]),
                default="truncate",
                show_default=True,
                help="What becomes of texts that are longer than the context.",
            ),
            click.option(
                "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts of a pass."
            ),
        )
    ):
        command = option(command)
    return command


def settings_of(options: dict[str, Any]) -> Settings:
    """What `embedding_options` say.

    Raises:
        UserError: layers that are no numbers.
    """
    from llmscale.embeddings.embedder import Settings

    text = options["layers"]
    try:
        layers = tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise UserError(f"--layers is {text!r}, but must be whole numbers, such as -1 or -4,-3,-2,-1") from None
    return Settings(options["pooling"], layers, options["normalize"], options["overflow"])


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--input", "path", required=True, help="File of texts; -: stdin, a text a line.")
@click.option("--field", help="Field of the texts, or a template, where records have fields.  [default: text]")
@click.option("--output", type=PATH, required=True, help="FILE.npy or FILE.jsonl.")
@embedding_options
@device_options
def embed(checkpoint: Path, path: str, field: str | None, output: Path, **options: Any) -> None:
    """Write vectors of texts, by the model of CHECKPOINT (or a run directory).

    Any model gives some: an encoder, a decoder, or the encoder of an encoder-decoder; good ones are trained by
    objective contrastive. JSON lines, CSV, TSV, Parquet and Arrow have a text a record, other files a text a line. A
    start that was ended goes on where it was.
    """
    device, dtype = chosen(options["device"], options["dtype"])
    from llmscale.embeddings.command import embed_texts
    from llmscale.embeddings.texts import read_texts

    settings = settings_of(options)
    where = {"device": device, "dtype": dtype, "batch_size": options["batch_size"]}
    echo(embed_texts(checkpoint, read_texts(path, field).texts, output, settings, **where))
