"""The ledger: what every step was trained on, checkable to the bit and replayable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.base.durable import parse_json, read_file, replace_file
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import RecordWriter, read_records
from data_pipeline.config import DataConfig
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.packing import Origin, Sample
from data_pipeline.open_samples import open_samples
from data_pipeline.samples import Samples
from data_pipeline.stream.cursor import LedgerSum
from data_pipeline.tokenizer import Tokenizer


class LedgerWriter:
    """Appends a row per step to `ledger.jsonl` and keeps cursor snapshots under `ledger/`. Rank 0 writes."""

    def __init__(self, run_dir: str | Path, attempt: int, continues: int | None = None) -> None:
        """
        Args:
            continues: the step that this attempt continues from.
        """
        self._rows = RecordWriter(Path(run_dir) / "ledger.jsonl", attempt, continues)
        self._snapshots = Path(run_dir) / "ledger"

    def write(
        self,
        step: int,
        first_sample: int,
        last_sample: int,
        total: LedgerSum,
        left_out: Sequence[tuple[int, int, LedgerSum]] = (),
    ) -> None:
        """The row of a step: its first and last sample number, and the sum over all ranks (taken modulo 2^64).

        `left_out`: ranges of samples just before it that no step is trained on, as (first, last, sum).
        """
        row: dict[str, Any] = {**_range(first_sample, last_sample, total)}
        if left_out:
            row["skipped"] = [_range(*each) for each in left_out]
        row = {"step": step, **row}
        self._rows.write(row)

    def snapshot(self, cursor: dict[str, Any]) -> None:
        """Keep a merged cursor, from which `replay` can begin. The file appears whole or not at all."""
        self._snapshots.mkdir(exist_ok=True)
        path = self._snapshots / f"cursor-{cursor['next_sample']:012d}.json"
        replace_file(path, json.dumps({**cursor, "check": _check_of(cursor)}, separators=(",", ":")).encode())

    def close(self) -> None:
        """Close the file; rows are written already."""
        self._rows.close()


def _range(first: int, last: int, total: LedgerSum) -> dict[str, Any]:
    return {"first_sample": first, "last_sample": last, "sum": f"{total % (1 << 64):016x}"}


class SeenPiece(NamedTuple):
    """A part of a document that a step saw."""

    sample: int
    """Global sample number k."""
    origin: Origin
    """The document, and the first of its tokens."""
    tokens: list[int]
    """The tokens. The last one of a sample is also the first of the lane's next one."""


def replay(
    run_dir: str | Path,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    objective: ObjectiveConfig = CausalObjective(),  # noqa: B008
    seed: int,
    step: int,
    cache: str | Path | None = None,
    epochs: float | None = None,
) -> Iterator[SeenPiece]:
    """What a step saw, produced again from the nearest snapshot and checked against the ledger's sum.

    Args:
        run_dir: the run, of whose config the other settings are; see `open_samples` for `cache` and `epochs`.

    Raises:
        UserError: the ledger has no such step, or the files or settings are no longer those of the run.
    """
    rows = read_records(Path(run_dir) / "ledger.jsonl")
    row = next((row for row in rows if row["step"] == step), None)
    if row is None:
        have = f"it has steps {rows[0]['step']} to {rows[-1]['step']}" if rows else "it is empty"
        raise UserError(f"the ledger of {run_dir} has no step {step}: {have}")
    if not is_row(row):
        raise UserError(f"the ledger of {run_dir} has a damaged row of step {step}; restore {run_dir}/ledger.jsonl")
    source = open_samples(config, tokenizer, objective, seed=seed, cache=cache, epochs=epochs)
    samples = list(_samples(Path(run_dir), source, config.lanes, row))
    total = sum(source.digest_of(sample, k) for k, sample in samples) % (1 << 64)
    if f"{total:016x}" != row["sum"]:
        raise UserError(
            f"step {step} of {run_dir} has ledger sum {row['sum']}, but its data give {total:016x} now; restore the"
            f" files and settings of the run"
        )
    for k, sample in samples:
        place = 0
        for piece, origin in zip(sample.pieces, source.origins(sample, k), strict=True):
            tokens = sample.tokens[place : place + piece.length].tolist()
            yield SeenPiece(k, origin, tokens)
            place += piece.length


def is_row(row: dict[str, Any]) -> bool:
    """Whether a row says which samples its step saw."""
    first, last = row.get("first_sample"), row.get("last_sample")
    return type(first) is int and type(last) is int and 0 <= first <= last and isinstance(row.get("sum"), str)


def _samples(run_dir: Path, source: Samples, lanes: int, row: dict[str, Any]) -> Iterator[tuple[int, Sample]]:
    first, last = row["first_sample"], row["last_sample"]
    if source.total is not None:
        last = min(last, source.total - 1)
    start = 0
    cursor = nearest_snapshot(run_dir, first)
    if cursor is not None:
        start = cursor["next_sample"]
        source.open(cursor, start, range(lanes))
    source.samples(range(start, first))
    yield from enumerate(source.samples(range(first, last + 1)), start=first)
    source.close()


def nearest_snapshot(run_dir: Path, sample: int) -> dict[str, Any] | None:
    """The last snapshot at or before a sample that is not damaged; None: from the first sample on."""
    paths = sorted((run_dir / "ledger").glob("cursor-*.json"), reverse=True)
    for path in paths:
        try:
            if int(path.stem.removeprefix("cursor-")) > sample:
                continue
            cursor = parse_json(read_file(path))
            check = cursor.pop("check", None)
            if check in (None, _check_of(cursor)) and cursor["next_sample"] <= sample:
                return cursor
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            continue
    return None


def _check_of(cursor: dict[str, Any]) -> str:
    """By which a damaged snapshot is told from a whole one; those of before have none."""
    # As JSON gives it back, in which keys are text.
    return hashlib.sha256(json.dumps(cursor, sort_keys=True).encode()).hexdigest()[:16]


class Difference(NamedTuple):
    """The first step at which two ledgers differ, with its rows; None where a run has no such step."""

    step: int
    row_a: dict[str, Any] | None
    row_b: dict[str, Any] | None


def first_difference(run_a: str | Path, run_b: str | Path) -> Difference | None:
    """The first step that two runs trained on different samples; None when one ledger is the beginning of the other.

    Raises:
        UserError: a run without a ledger.
    """
    ledgers = []
    for run in (run_a, run_b):
        rows = {row["step"]: row for row in read_records(Path(run) / "ledger.jsonl") if is_row(row)}
        if not rows:
            raise UserError(f"{run} has no ledger (ledger.jsonl); give a run directory")
        ledgers.append(rows)
    a, b = ledgers
    last = min(max(a), max(b))
    for step in sorted(step for step in {*a, *b} if step <= last):
        row_a, row_b = a.get(step), b.get(step)
        if row_a is None or row_b is None or _said(row_a) != _said(row_b):
            return Difference(step, row_a, row_b)
    return None


def _said(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "attempt"}
