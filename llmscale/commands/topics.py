"""`llmscale topics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from data_pipeline.base.errors import UserError
from llmscale.commands.device_options import chosen, device_options
from llmscale.commands.embed import embedding_options, settings_of
from llmscale.commands.paths import PATH
from llmscale.commands.speech import echo


@click.command()
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--embeddings", type=PATH, help="Vectors of the texts, in place of CHECKPOINT.")
@click.option("--input", "path", required=True, help="File of texts, as for embed.")
@click.option("--field", help="Field of the texts, or a template, where records have fields.  [default: text]")
@click.option("--label", "label_field", help="Field of labels, by which the topics are judged.")
@click.option("--topics", "count", default="auto", show_default=True, help="How many, or auto.")
@click.option("--output", type=PATH, required=True, help="Folder of what is found.")
@click.option("--terms", type=click.IntRange(min=1), default=10, show_default=True, help="Words of a topic.")
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True)
@embedding_options
@device_options
def topics(
    checkpoint: Path | None,
    embeddings: Path | None,
    path: str,
    field: str | None,
    label_field: str | None,
    count: str,
    output: Path,
    terms: int,
    seed: int,
    **options: Any,
) -> None:
    """Find topics in texts, by vectors of the model of CHECKPOINT (or a run directory) or by given ones.

    The texts are clustered, and each cluster is described by the words that tell it from the others. Writes
    topics.json, texts.jsonl and index.html.
    """
    if (checkpoint is None) == (embeddings is None):
        raise UserError("topics needs vectors of the texts from one place; give a checkpoint, or --embeddings FILE")
    from llmscale.embeddings.texts import read_texts
    from llmscale.topics.command import number_of, write_topics

    wanted, given = number_of(count), read_texts(path, field, label_field)

    def embed(file: Path) -> None:
        from llmscale.embeddings.command import embed_texts

        assert checkpoint is not None
        device, dtype = chosen(options["device"], options["dtype"])
        where = {"device": device, "dtype": dtype, "batch_size": options["batch_size"]}
        embed_texts(checkpoint, given.texts, file, settings_of(options), **where)

    for line in write_topics(path, given, output, wanted, embeddings or embed, terms=terms, seed=seed):
        echo(line)
