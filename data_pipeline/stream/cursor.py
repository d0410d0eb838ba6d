"""Cursors: where every lane of the training stream stands after some sample, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.samples import Files

LedgerSum = int
"""Sum modulo 2^64 of `Sample.digest(k)` over some samples: no matter who read which, the same samples give one sum."""

VERSION = 2


def require_divisible(lanes: int, dp_size: int) -> None:
    """Raise UserError, naming the nearest sizes that do, unless the data-parallel size divides the lanes."""
    if lanes % dp_size == 0:
        return
    legal = [size for size in range(1, lanes + 1) if lanes % size == 0]
    below = [size for size in legal if size < dp_size][-1:]
    above = [size for size in legal if size > dp_size][:1]
    raise UserError(
        f"data.lanes ({lanes}) is not divisible by the data-parallel size ({dp_size});"
        f" use {' or '.join(map(str, below + above))} data-parallel ranks, or a multiple of {dp_size} lanes"
    )


def make_cursor(
    files: Files, settings: Mapping[str, Any], next_sample: int, lanes: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """A cursor of some lanes.

    Args:
        files: what it belongs to.
        settings: what else decides the samples, such as lanes and seed.
        next_sample: global number of the first sample that no rank has consumed.
        lanes: of each lane, the group of sources and the LaneState of every strand that has begun.
    """
    return {
        "version": VERSION,
        "next_sample": next_sample,
        "settings": dict(settings),
        "source": files.digest,
        "files": files.fingerprints(),
        "lanes": {lane: [list(state) for state in states] for lane, states in lanes.items()},
    }


def merge_cursors(cursors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One cursor of all lanes from those of all ranks, taken after the same step.

    Raises:
        UserError: ranks that see different files.
    """
    first = cursors[0]
    for rank, cursor in enumerate(cursors):
        if cursor["source"] != first["source"]:
            raise UserError(
                f"rank {rank} sees other files of data.sources than rank 0 (digest {cursor['source'][:12]} and"
                f" {first['source'][:12]}); give all machines the same files"
            )
        assert (cursor["next_sample"], cursor["settings"]) == (first["next_sample"], first["settings"])
    lanes = {lane: state for cursor in cursors for lane, state in cursor["lanes"].items()}
    return {**first, "lanes": dict(sorted(lanes.items(), key=lambda item: int(item[0])))}


def require_form(cursor: Mapping[str, Any]) -> None:
    """Raise ValueError unless a cursor of this version has the form that `make_cursor` gives it.

    One of another version is left to `open_cursor`, which says so.
    """
    if cursor.get("version") != VERSION:
        return
    kinds = {"next_sample": int, "settings": dict, "source": str, "lanes": dict}
    for key, kind in kinds.items():
        if type(cursor.get(key)) is not kind:
            raise ValueError(f"the data cursor has no {key}")
    for lane, states in cursor["lanes"].items():
        rows = states if isinstance(states, list) and lane.isdecimal() and lane.isascii() else [None]
        if not all(isinstance(row, list) and all(type(n) is int and -1 <= n < 2**63 for n in row) for row in rows):
            raise ValueError(f"the data cursor has no state of lane {lane!r}")


def open_cursor(
    cursor: dict[str, Any], files: Files, settings: Mapping[str, Any], first_sample: int, lanes: Sequence[int]
) -> dict[int, list[list[int]]]:
    """The states of `lanes` in a merged cursor, as `make_cursor` got them.

    Raises:
        UserError: the cursor is of other settings, files or samples.
    """
    if cursor.get("version") != VERSION:
        raise UserError(f"the data cursor has version {cursor.get('version')}, not {VERSION}; resume with its llmscale")
    for name, value in settings.items():
        if cursor["settings"].get(name) != value:
            field = {"seed": "run.seed"}.get(name, f"data.{name}")
            raise UserError(
                f"the run was saved with {field} = {cursor['settings'].get(name)}, but it is {value} now;"
                f" set it back, or start a new run"
            )
    files.check(cursor)
    if cursor["next_sample"] != first_sample:
        raise UserError(
            f"the data cursor is at sample {cursor['next_sample']}, but the run goes on at sample {first_sample};"
            f" set train.global_batch back to what it was"
        )
    absent = [lane for lane in lanes if str(lane) not in cursor["lanes"]]
    if absent:
        raise ValueError(f"the cursor lacks lanes {absent[:3]}: merge the cursors of all ranks first")
    return {lane: cursor["lanes"][str(lane)] for lane in lanes}
