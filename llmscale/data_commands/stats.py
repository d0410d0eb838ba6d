"""What `llmscale data stats` measures and prints."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.statistics import TextStatistics, measure, sample_documents, source_spans
from llmscale.config import load_config

NAMES_WIDTH = 20
COLUMN_WIDTH = 17
"""Characters on the screen, borders included."""


def text_statistics(path: Path, overrides: tuple[str, ...], max_bytes: int) -> dict[str, Any]:
    """Statistics of each source's training documents under the config's tokenizer, as JSON.

    The tokenizer is the run's where the run directory has one that fits the config; else it is made for the occasion.

    Args:
        max_bytes: sample this much of each source evenly; 0 for everything.

    Raises:
        UserError: the config, a source or the tokenizer cannot be used.
    """
    config = load_config(path, overrides)
    corpus = Corpus.training(config.data)
    tokenizer = _tokenizer(config.data, Path(config.run.directory) / "tokenizer")
    rows: list[dict[str, Any]] = []
    total = TextStatistics()
    with _progress() as progress:
        for index, source in enumerate(config.data.sources):
            size = sum(span.size for span in source_spans(corpus, index))
            label = _label(source, index)
            task = progress.add_task(escape(label), total=min(size, max_bytes) if max_bytes else size)
            found = measure(sample_documents(corpus, index, max_bytes), tokenizer, partial(progress.advance, task))
            # Text is smaller than the file it is in, so the bar would stop short.
            progress.update(task, completed=progress.tasks[-1].total)
            whole = not max_bytes or size <= max_bytes
            rows.append(
                {"source": label, "size": size, "whole": whole, **found.figures(), "dropped": dict(corpus.dropped)}
            )
            corpus.dropped.clear()
            # What else was dropped stands in the table.
            for warning in corpus.take_counts().warnings(threshold=1.0):
                progress.console.print(warning, highlight=False, markup=False, soft_wrap=True)
            total += found
    about = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest}
    extent = {"size": sum(row["size"] for row in rows), "whole": all(row["whole"] for row in rows)}
    dropped = sum((Counter(row["dropped"]) for row in rows), Counter())
    return {"tokenizer": about, "sources": rows, "total": {**extent, **total.figures(), "dropped": dict(dropped)}}


def show(statistics: dict[str, Any]) -> None:
    """Print what `text_statistics` gives on stdout: a column for each source, in as many tables as the width needs."""
    about = statistics["tokenizer"]
    rows = list(statistics["sources"])
    if len(rows) > 1:
        rows.append({"source": "all sources", **statistics["total"]})
    console = Console()
    console.print(f"{about['kind']} tokenizer of {about['vocab_size']:,} tokens", highlight=False)
    fit = max(1, (console.width - NAMES_WIDTH) // COLUMN_WIDTH)
    for first in range(0, len(rows), fit):
        shown = rows[first : first + fit]
        table = Table(Column("", no_wrap=True))
        for row in shown:
            table.add_column(escape(row["source"]), justify="right", overflow="fold", min_width=COLUMN_WIDTH - 3)
        columns = [_cells(row) for row in shown]
        for name in columns[0]:
            table.add_row(name, *(column[name] for column in columns))
        console.print(table)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    lengths = row["document_tokens"]
    dropped = "\n".join(f"{count:,} {reason}" for reason, count in sorted(row["dropped"].items()))
    return {
        "read": "all" if row["whole"] else f"of {row['size'] / 1e6:,.1f} MB",
        "MB": f"{row['bytes'] / 1e6:,.2f}",
        "documents": f"{row['documents']:,}",
        "characters": f"{row['characters']:,}",
        "tokens": f"{row['tokens']:,}",
        "tokens/byte": _number(row["tokens_per_byte"], ".3f"),
        "characters/token": _number(row["characters_per_token"], ".2f"),
        "unknown tokens": _number(row["unknown_rate"], ".3%"),
        "tokens/document": _number(lengths["mean"], ",.0f"),
        **{f"  {name}": _number(value, ",") for name, value in lengths.items() if name != "mean"},
        "dropped": dropped or "none",
    }


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _label(source: SourceConfig, index: int) -> str:
    return source.label or ", ".join(source.paths) or source.name or f"data.sources[{index}]"


def _tokenizer(config: DataConfig, of_run: Path) -> Tokenizer:
    if of_run.is_dir():
        try:
            return prepare_tokenizer(config, of_run)
        except UserError as error:
            tell(f"the run's tokenizer is not used: {error}")
    with tempfile.TemporaryDirectory() as folder:
        return prepare_tokenizer(config, Path(folder) / "tokenizer", tell)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar a source on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress
