"""`llmscale eval`."""

from __future__ import annotations

from pathlib import Path

import click

from data_pipeline.base.errors import UserError


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", "files", multiple=True, required=True, help="File or glob to evaluate on; repeatable.")
@click.option("--kind", help="What the files are: text, jsonl, csv, tsv, parquet, arrow or tokens.  [default: by name]")
@click.option("--field", help="Field of the texts, or a template.  [default: the run's own]")
@click.option("--target-field", help="Field of the targets of pairs, or a template.  [default: the run's own]")
@click.option("--encoding", help="Encoding of text, jsonl, csv and tsv, such as gb18030.  [default: the run's own]")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of a forward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(checkpoint: Path, files: tuple[str, ...], batch: int, as_json: bool, **given: str | None) -> None:
    """Loss, perplexity and bits per byte of CHECKPOINT (or a run directory) on given files.

    A text file is one document; of other files, each record is one. A model of objective seq2seq is evaluated on pairs.
    """
    from llmscale.evaluate.commands import evaluate_files
    from llmscale.evaluate.sources import KINDS, Given

    if given["kind"] not in (None, *KINDS):
        raise UserError(f"--kind is {given['kind']!r}, but must be one of {', '.join(KINDS)}")
    evaluate_files(checkpoint, files, batch, as_json, Given(**given))
