"""What `llmscale data` prints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.ledger import first_difference, replay
from llmscale.checkpoint.members import own_checkpoints, recorded_config, recorded_tokenizer


def ledger_step(run: Path, step: int) -> Iterator[str]:
    """Lines that show what a step of a run saw: each sample's documents, which of their tokens, and the text.

    Relative paths of the run's config count from the working directory, as they did in training.

    Raises:
        UserError: no such run or step, or its files or settings are no longer those it was trained with.
    """
    if not (run / "config.yaml").is_file() and next(own_checkpoints(run), None) is None:
        raise UserError(f"{run} is no run, since it has no config.yaml; give the directory that run.directory named")
    config = recorded_config(run)
    tokenizer = recorded_tokenizer(run)
    width = shutil.get_terminal_size((120, 0)).columns
    pieces = replay(
        run,
        config.data,
        tokenizer,
        objective=config.objective,
        seed=config.run.seed,
        step=step,
        cache=run / "cache",
        epochs=config.train.epochs,
    )
    for sample, parts in groupby(pieces, key=lambda piece: piece.sample):
        yield f"step {step}, sample {sample}"
        for piece in parts:
            path, position, first = piece.origin
            line = f"  {path}:{position}, tokens {first} to {first + len(piece.tokens) - 1}: "
            text = repr(tokenizer.decode(piece.tokens))
            yield line + (text if len(line + text) <= width else text[: max(10, width - len(line) - 4)] + " ...")


def ledger_difference(run_a: Path, run_b: Path) -> tuple[bool, str]:
    """Whether two runs trained on the same samples as far as both go, and a sentence that says so or where they part.

    Raises:
        UserError: a run without a ledger.
    """
    found = first_difference(run_a, run_b)
    if found is None:
        return True, f"{run_a} and {run_b} trained on the same samples in every step that both have"
    a, b = (_row(run, row) for run, row in ((run_a, found.row_a), (run_b, found.row_b)))
    return False, f"the runs differ from step {found.step} on: {a}, {b}"


def _row(run: Path, row: dict[str, Any] | None) -> str:
    if row is None:
        return f"{run} has no such step"
    return f"{run} has samples {row['first_sample']} to {row['last_sample']} with sum {row['sum']}"
