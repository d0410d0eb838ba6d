"""How the ranks of one save meet, by files only: no collective may run in a background thread.

Rank 0 makes the temporary folder. Every rank writes its files into it and, last, `rank-00003.json`, or
`rank-00003.failed` with the reason. Rank 0 waits for all of them, merges them into the manifest and renames the
folder; to the others, the folder's disappearance is the commit, unless rank 0 has left a `.tmp-failed-*` file.
"""

import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import replace_file, sync_folder
from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.manifest import (
    CURSOR,
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    FileEntry,
    Manifest,
    RankRecord,
    RunState,
    TensorEntry,
    encode,
)
from llmscale.checkpoint.store import discard, poll, write_durably
from llmscale.slices.boxes import take
from llmscale.slices.tensor_slice import TensorSlice

MergeCursors = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


def rank_name(rank: int) -> str:
    """The stem of a rank's files."""
    return f"rank-{rank:05d}"


def failure_note(temporary: Path) -> Path:
    """Where rank 0 leaves the reason when it gives a save up; `clean` removes it."""
    return temporary.with_name(temporary.name.replace(".tmp-", ".tmp-failed-", 1))


def merge_disjoint(parts: Sequence[dict[str, Any]], prefix: str = "") -> dict[str, Any]:
    """The union of nested dictionaries, such as each rank's lanes; `prefix` leads the keys in messages.

    Raises:
        ValueError: two parts give one key different values.
    """
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if len(values) > 1 and all(isinstance(value, dict) for value in values):
            merged[key] = merge_disjoint(values, f"{prefix}{key}.")
        elif any(value != values[0] for value in values):
            raise ValueError(f"the ranks disagree on {prefix}{key} of the data cursor: {values[0]!r}, {values[1]!r}")
        else:
            merged[key] = values[0]
    return merged


def collect(temporary: Path, world: int, timeout: float) -> list[RankRecord]:
    """Wait for the records of all ranks, and read them.

    Raises:
        CheckpointError: a rank has failed or is late, or a file is shorter than its rank said.
    """
    expected = {f"{rank_name(rank)}.json" for rank in range(world)}
    seen: set[str] = set()

    def arrived() -> bool:
        seen.clear()
        seen.update(os.listdir(temporary))
        for failed in sorted(name for name in seen if name.endswith(".failed")):
            raise CheckpointError((temporary / failed).read_text())
        return expected <= seen

    if not poll(arrived, timeout):
        late = ", ".join(sorted(name.removesuffix(".json") for name in expected - seen)[:8])
        raise CheckpointError(f"cannot save {temporary}: after {timeout:.0f} s there is still nothing of {late}")
    records = [RankRecord.model_validate_json((temporary / name).read_bytes()) for name in sorted(expected)]
    for name, entry in merge_files(records).items():
        size = (temporary / name).stat().st_size
        if size != entry.bytes:
            raise CheckpointError(f"cannot save {temporary / name}: wrote {entry.bytes} bytes, but it has {size}")
    return records


def merge_files(records: Sequence[RankRecord]) -> dict[str, FileEntry]:
    """The files of all ranks."""
    return {name: entry for record in records for name, entry in record.files.items()}


def merge_tensors(records: Sequence[RankRecord]) -> dict[str, TensorEntry]:
    """The pieces of all ranks by tensor; of equal pieces (replicas) the first is taken.

    Raises:
        CheckpointError: ranks disagree on a shape, or the pieces leave a part of a tensor uncovered.
    """
    merged: dict[str, TensorEntry] = {}
    for record in records:
        for name, entry in record.tensors.items():
            known = merged.setdefault(name, TensorEntry(shape=entry.shape, kinds={}, shapes={}))
            known.shapes.update({kind: shape for kind, shape in entry.shapes.items() if kind not in known.kinds})
            if known.shape != entry.shape:
                raise CheckpointError(f"ranks disagree on the shape of {name}: {known.shape} and {entry.shape}")
            for kind, pieces in entry.kinds.items():
                shapes = known.shape_of(kind), entry.shape_of(kind)
                if shapes[0] != shapes[1]:
                    raise CheckpointError(f"ranks disagree on the shape of {kind} of {name}: {shapes[0]}, {shapes[1]}")
                known.kinds.setdefault(kind, []).extend(pieces)
    for name, entry in merged.items():
        for kind in entry.kinds:
            unique = dict(reversed(list(entry.slices(kind))))
            entry.kinds[kind] = [unique[held] for held in sorted(unique)]
            shape = entry.shape_of(kind)
            missing = TensorSlice.whole(shape).boxes()
            for held in sorted(unique):
                _, missing = take(missing, held.boxes())
            if missing:
                raise CheckpointError(f"no rank has given elements {missing[0]} of {kind} of {name} {shape}")
    return merged


def finish(
    temporary: Path,
    *,
    step: int,
    attempt: int,
    state: RunState,
    records: Sequence[RankRecord],
    merge_cursors: MergeCursors,
    tokenizer: dict[str, bytes],
) -> None:
    """Rank 0: merge what the ranks wrote; afterwards the folder is complete and on the disk."""
    files = merge_files(records)
    cursor = merge_cursors([record.cursor for record in records])
    files[CURSOR] = write_durably(temporary / CURSOR, json.dumps(cursor).encode())
    for name, data in tokenizer.items():
        path = temporary / TOKENIZER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files[f"{TOKENIZER}/{name}"] = write_durably(path, data)
    for folder in {(temporary / name).parent for name in files} - {temporary}:
        sync_folder(folder)
    for rank in range(len(records)):
        (temporary / f"{rank_name(rank)}.json").unlink()
    manifest = Manifest(
        **state.model_dump(),
        format_version=FORMAT_VERSION,
        step=step,
        attempt=attempt,
        world=len(records),
        versions=_versions(),
        tensors=merge_tensors(records),
        files=files,
    )
    write_durably(temporary / MANIFEST, encode(manifest))
    sync_folder(temporary)


def abandon(temporary: Path, reason: str, alone: bool) -> None:
    """Rank 0: remove the temporary folder and, unless it is `alone`, leave the reason for ranks yet to arrive."""
    # The data go first: the note needs room on a full disk, and must be there before the folder is gone.
    for path in temporary.glob("rank-*.safetensors"):
        path.unlink(missing_ok=True)
    if not alone:
        with suppress(OSError):
            replace_file(failure_note(temporary), reason.encode())
    discard(temporary)


def await_commit(temporary: Path, timeout: float) -> None:
    """Other ranks: wait until rank 0 has renamed the folder.

    Raises:
        CheckpointError: rank 0 has given the save up, or is late.
    """
    if not poll(lambda: not temporary.exists(), timeout):
        raise CheckpointError(f"cannot save {temporary}: rank 0 has not finished it after {timeout:.0f} s")
    raise_note(temporary)


def await_start(temporary: Path, timeout: float) -> None:
    """Other ranks: wait until rank 0 has made the temporary folder.

    Raises:
        CheckpointError: rank 0 has given the save up, or is late.
    """
    if not poll(lambda: temporary.exists() or failure_note(temporary).exists(), timeout):
        raise CheckpointError(f"cannot save {temporary}: rank 0 has not made it after {timeout:.0f} s")
    raise_note(temporary)


def raise_note(temporary: Path) -> None:
    """Raise rank 0's reason for giving the save up, if there is one."""
    note = failure_note(temporary)
    if note.exists():
        raise CheckpointError(note.read_text())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "deepspeed", "safetensors", "llmscale"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
