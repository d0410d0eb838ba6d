"""What a run has decided to skip after its loss jumped: part of what it is from then on.

A decision is on record, durably, before anything follows from it; every later start obeys the record, whatever its
layout and whatever `recovery.spikes` says by then. Checkpoints carry the decisions too.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.base.records import RecordWriter, read_every_record
from llmscale.checkpoint.manifest import Manifest
from llmscale.checkpoint.members import Identity, own_checkpoints
from llmscale.checkpoint.store import discard


class RollBack(Exception):
    """The run is to continue from an earlier checkpoint, on other samples. Every rank raises it after the same step."""


@dataclass(frozen=True, order=True)
class Skip:
    """Samples that no step is trained on."""

    first: int
    last: int
    """The last one of them."""
    step: int
    """The step (from 1) whose loss was the spike."""


@dataclass(frozen=True)
class Recent:
    """What a step was trained on, and how it went."""

    first: int
    """Its first sample."""
    samples: int
    ledger: str
    """The ledger's sum."""
    loss: float | None
    """None where it was not finite, or nothing was learned."""


def read_skips(path: Path) -> list[Skip]:
    """The decisions in a run's recoveries.jsonl; none where there is no such file."""
    rows = read_every_record(path)
    return sorted(
        {
            Skip(row["first_sample"], row["last_sample"], row["step"])
            for row in rows
            if _whole(row.get("first_sample")) and _whole(row.get("last_sample"))
        }
    )


def append_decision(path: Path, attempt: int, row: dict[str, Any]) -> None:
    """Put a decision on record, on the disk when this returns."""
    with RecordWriter(path, attempt) as writer:
        writer.write(row)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_progress(skips: list[Skip], recent: deque[Recent]) -> dict[str, Any]:
    """What a checkpoint keeps of the decisions and of what the next one is made from."""
    kept: dict[str, Any] = {}
    if skips:
        kept["skips"] = [[skip.first, skip.last, skip.step] for skip in skips]
    if recent:
        kept["recent"] = [[each.first, each.samples, each.ledger, each.loss] for each in recent]
    return kept


def skips_of(progress: dict[str, Any]) -> list[Skip]:
    """The decisions that a checkpoint carries.

    Raises:
        ValueError: they have not the form of `as_progress`.
    """
    rows = progress.get("skips", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == 3 and all(map(_whole, row)) and row[0] <= row[1] for row in rows
    ):
        raise ValueError(f"its manifest has {rows!r} for the samples that are skipped")
    return [Skip(*row) for row in rows]


def recent_of(progress: dict[str, Any]) -> deque[Recent]:
    """The newest steps before a checkpoint. Raises ValueError as `skips_of`."""
    rows = progress.get("recent", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, list)
        and len(row) == 4
        and _whole(row[0])
        and _whole(row[1])
        and isinstance(row[2], str)
        and (row[3] is None or type(row[3]) in (int, float))
        for row in rows
    ):
        raise ValueError("its manifest does not say how the newest steps went")
    return deque(Recent(*row) for row in rows)


def trained_on(manifest: Manifest, skips: list[Skip]) -> Skip | None:
    """The first decision that a checkpoint past its samples knows nothing of; None where it obeys all."""
    try:
        known = set(skips_of(manifest.progress))
    except ValueError:
        known = set()
    return next((skip for skip in skips if manifest.samples > skip.first and skip not in known), None)


def drop_outdated(checkpoints: Path, run: Identity, skips: list[Skip]) -> None:
    """Delete the checkpoints that were trained on what has been skipped since: the run does not pass by them again."""
    for folder, manifest in list(own_checkpoints(checkpoints, run)):
        if trained_on(manifest, skips) is not None:
            discard(folder)


def checkpoint_before(checkpoints: Path, run: Identity, sample: int) -> int | None:
    """The step of the newest checkpoint that has not consumed a sample; None without one."""
    own = own_checkpoints(checkpoints, run)
    return next((manifest.step for _, manifest in own if manifest.samples <= sample), None)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
