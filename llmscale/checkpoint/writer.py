"""Saving without stopping: the state is copied to host memory, and a thread of each rank does the rest."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.base.durable import replace_file
from data_pipeline.base.errors import UserError
from llmscale.checkpoint import commit
from llmscale.checkpoint.commit import MergeCursors, merge_disjoint, rank_name
from llmscale.checkpoint.errors import CheckpointError, CorruptCheckpoint, NotFiniteError
from llmscale.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Piece,
    RankRecord,
    RunState,
    TensorEntry,
    encode,
    read_manifest,
)
from llmscale.checkpoint.members import identity_of, why_stranger
from llmscale.checkpoint.store import (
    Retention,
    apply_retention,
    discard,
    free_bytes,
    publish,
    set_aside,
    step_name,
)
from llmscale.checkpoint.tensor_file import write_safetensors
from llmscale.slices.fragment import Fragment

_log = logging.getLogger(__name__)

Buffers = dict[tuple[str, str, int], torch.Tensor]
"""Host memory by (name, kind, number of the piece)."""


@dataclass(frozen=True)
class _Save:
    """Everything one rank needs to write a step, out of reach of the training loop."""

    step: int
    temporary: Path
    files: dict[str, dict[str, torch.Tensor]]
    tensors: dict[str, TensorEntry]
    cursor: dict[str, Any]
    state: RunState | None
    tokenizer: dict[str, bytes]


class CheckpointWriter:
    """Writes the checkpoints of a run; every rank has one and makes the same calls in the same order.

    The ranks meet through the shared directory only (see `llmscale.checkpoint.commit`). Call `clean` on one rank before
    the first save of an attempt. A step that exists already is replaced: a run that comes by a step again has gone back
    to an older checkpoint and means its new state. From `prepare` or its first save on, a writer holds a host copy
    of its part.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        rank: int = 0,
        world: int = 1,
        attempt: int = 1,
        retention: Retention | None = None,
        merge_cursors: MergeCursors = merge_disjoint,
        timeout: float = 1800.0,
        part_bytes: int = 4 << 30,
        on_commit: Callable[[int], object] = lambda step: None,
    ) -> None:
        """
        Args:
            directory: the `checkpoints` folder of the run; made when missing.
            rank, world: this rank and the number of ranks that save.
            attempt: which start of the run this is; a later start has a larger one.
            retention: which checkpoints rank 0 keeps; the newest 3 when not given.
            merge_cursors: makes one data cursor of the ranks' parts, in rank order.
            timeout: seconds that a rank waits for another before the save fails.
            part_bytes: a rank starts another file beyond this many bytes.
            on_commit: on rank 0, called in the thread that writes with each step that has become a checkpoint.
        """
        self._directory = Path(directory)
        self._rank, self._world, self._attempt = rank, world, attempt
        self._retention = retention or Retention()
        self._merge_cursors = merge_cursors
        self._timeout = timeout
        self._part_bytes = part_bytes
        self._on_commit = on_commit
        self._saves = 0
        self._written: dict[str, int] = {}
        """Manifests that this writer wrote, as inodes by folder: they need not be read to be known."""
        self._buffers: Buffers = {}
        self._preparation: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def prepare(self, fragments: Iterable[Fragment]) -> threading.Thread:
        """Begin to allocate the host copy, in the background while the first steps run: a save that has to allocate it
        holds training up for several times as long.

        Args:
            fragments: as `save` will get them; only their sizes matter.

        Returns:
            The thread, which nobody needs to wait for.
        """
        sizes: dict[tuple[str, str, int], int] = {}
        pieces: Counter[tuple[str, str]] = Counter()
        for fragment in fragments:
            if fragment.slice.numel:
                name, kind = fragment.name, fragment.kind
                sizes[name, kind, pieces[name, kind]] = fragment.slice.numel
                pieces[name, kind] += 1
        self._preparation = threading.Thread(target=self._allocate, args=(sizes,), name="checkpoints", daemon=True)
        self._preparation.start()
        return self._preparation

    def _allocate(self, sizes: Mapping[tuple[str, str, int], int]) -> None:
        with suppress(MemoryError):  # of which a save will tell
            for slot, size in sizes.items():
                self._buffers[slot] = _host_memory(size)
                self._buffers[slot].numpy().fill(0)  # the system gives memory when it is first written to

    def save(
        self,
        step: int,
        fragments: Iterable[Fragment],
        extra: Mapping[str, Any] | None = None,
        cursor_part: Mapping[str, Any] | None = None,
        copy_files: Mapping[str, Path] | None = None,
    ) -> None:
        """Copy the state to host memory and start writing it; all arguments may change once this returns.

        Waits for the previous save first.

        Args:
            step: finished optimizer steps.
            fragments: what this rank holds; all ranks' fragments together must cover each tensor. They are drawn and
                copied one at a time.
            extra: on rank 0, the fields of `RunState`: `samples` and, where there are any, `progress`, `optimizer`,
                `schedule`, `rng`, `config`, `identity` and `drawn`; JSON only.
            cursor_part: this rank's part of the data cursor; JSON only, so keys come back as text.
            copy_files: on rank 0, tokenizer files by their name in the checkpoint's `tokenizer` folder.

        Raises:
            CheckpointError: the previous save failed, or a file to copy cannot be read.
            ValueError: `extra` has an unknown field or a fragment is not what it says.
        """
        self.wait()
        if self._preparation is not None:
            self._preparation.join()
            self._preparation = None
        self._saves += 1
        files, tensors = _snapshot(fragments, self._rank, self._part_bytes, self._buffers)
        save = _Save(
            step=step,
            temporary=self._directory / f".tmp-step-{step:08d}-attempt-{self._attempt}-save-{self._saves}",
            files=files,
            tensors=tensors,
            cursor=json.loads(json.dumps(cursor_part or {})),
            state=RunState.model_validate_json(json.dumps(extra)) if self._rank == 0 else None,
            tokenizer={name: _read(Path(path)) for name, path in (copy_files or {}).items()},
        )
        # A daemon: a rank that exits must not hang on a dead peer. Whoever wants the save to finish calls `wait`.
        self._thread = threading.Thread(target=self._run, args=(save,), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is pending: the last one is then committed, on whatever rank this is called.

        Raises:
            CheckpointError: the last save failed, on this rank or another. It is raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def correct(self, step: int, progress: Mapping[str, Any]) -> None:
        """On rank 0: replace a part of `progress` in the manifest of a step that is saved, at one instant, and retain
        checkpoints by it. What cannot be written is only worth a warning."""
        folder = self._directory / step_name(step)
        try:
            manifest = read_manifest(folder)
            changed = manifest.model_copy(update={"progress": {**manifest.progress, **progress}})
            replace_file(folder / MANIFEST, encode(changed), durable=True)
        except (OSError, CorruptCheckpoint) as error:
            _log.warning("step %d is saved, but %s could not be replaced: %s", step, folder / MANIFEST, error)
            return
        self._written[folder.name] = (folder / MANIFEST).stat().st_ino
        self._retain(step, changed)

    @property
    def pending(self) -> bool:
        """Whether a save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, save: _Save) -> None:
        try:
            self._write(save)
        except CheckpointError as error:
            self._error = error
        except OSError as error:
            self._error = CheckpointError(self._explain(save, error))
        except Exception as error:
            self._error = CheckpointError(f"cannot save step {save.step} in {self._directory}: {error!r}")
            self._error.__cause__ = error
        if self._error is not None:
            with suppress(OSError):
                self._give_up(save, str(self._error))

    def _write(self, save: _Save) -> None:
        temporary = save.temporary
        if self._rank == 0:
            discard(temporary)
            temporary.mkdir(parents=True)
        else:
            commit.await_start(temporary, self._timeout)
        entries: dict[str, FileEntry] = {}
        for name, tensors in save.files.items():
            try:
                entries[name] = write_safetensors(temporary / name, tensors)
            except NotFiniteError as error:
                raise CheckpointError(
                    f"step {save.step} is not saved in {self._directory}, since {error} holds values that are not"
                    f" finite (NaN or Inf; rank {self._rank}); the earlier checkpoints are untouched, and the same"
                    f" command continues from the newest of them; if it ends here again, lower optimizer.lr or set"
                    f" optimizer.clip in a new run (train.init_from)"
                ) from None
        record = RankRecord(tensors=save.tensors, files=entries, cursor=save.cursor)
        replace_file(temporary / f"{rank_name(self._rank)}.json", record.model_dump_json().encode())
        if save.state is None:
            commit.await_commit(temporary, self._timeout)
            return
        records = commit.collect(temporary, self._world, self._timeout)
        commit.finish(
            temporary,
            step=save.step,
            attempt=self._attempt,
            state=save.state,
            records=records,
            merge_cursors=self._merge_cursors,
            tokenizer=save.tokenizer,
        )
        self._make_room(self._directory / step_name(save.step), save.state)
        published = publish(temporary, save.step)
        self._written[published.name] = (published / MANIFEST).stat().st_ino
        self._on_commit(save.step)
        self._retain(save.step, save.state)

    def _retain(self, step: int, state: RunState) -> None:
        try:
            best = state.progress.get("best") or {}
            own = partial(self._is_own, state=state)
            apply_retention(self._directory, step, self._retention, own, best.get("step"))
        except OSError as error:
            _log.warning("step %d is saved, but older checkpoints could not be deleted: %s", step, error)

    def _is_own(self, folder: Path, state: RunState) -> bool | None:
        """Whether a folder is a checkpoint of this run; None where that cannot be told."""
        with suppress(OSError):
            if self._written.get(folder.name) == (folder / MANIFEST).stat().st_ino:
                return True
        try:
            return why_stranger(folder, read_manifest(folder), identity_of(state)) is None
        except CorruptCheckpoint:
            return None
        except UserError:  # a newer format
            return False

    def _make_room(self, place: Path, state: RunState) -> None:
        """What has the name of a checkpoint and is none of this run is not replaced by it."""
        if place.exists() and self._is_own(place, state) is False:
            _log.warning("%s is no checkpoint of this run and is now %s", place, set_aside(place))

    def _explain(self, save: _Save, error: OSError) -> str:
        note = commit.failure_note(save.temporary)
        if self._rank and note.exists():
            return note.read_text()
        needed = sum(tensor.numel() * 4 for tensors in save.files.values() for tensor in tensors.values())
        return (
            f"cannot save step {save.step} in {self._directory}: {error.strerror} ({error.filename or save.temporary});"
            f" rank {self._rank} has {needed} bytes to write and {free_bytes(self._directory)} are free there;"
            f" the earlier checkpoints are untouched; free some space, then start again"
        )

    def _give_up(self, save: _Save, reason: str) -> None:
        if self._rank == 0:
            commit.abandon(save.temporary, reason, alone=self._world == 1)
            return
        for name in save.files:
            (save.temporary / name).unlink(missing_ok=True)
        replace_file(save.temporary / f"{rank_name(self._rank)}.failed", reason.encode())


def _snapshot(
    fragments: Iterable[Fragment], rank: int, part_bytes: int, buffers: Buffers
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, TensorEntry]]:
    """Copies on the host by file and key, and the piece table that tells where each went; empty fragments have none.

    The copies land in `buffers`, which are kept from save to save: copying into new memory takes three times as long.
    """
    files: dict[str, dict[str, torch.Tensor]] = {}
    tensors: dict[str, TensorEntry] = {}
    room = 0
    file = ""
    for fragment in fragments:
        held = fragment.slice
        given = fragment.parameter_shape or held.shape, held.shape
        entry = tensors.setdefault(fragment.name, TensorEntry(shape=given[0], kinds={}, shapes={}))
        if fragment.parameter_shape is not None and fragment.kind not in entry.kinds:
            entry.shapes[fragment.kind] = held.shape
        pieces = entry.kinds.setdefault(fragment.kind, [])
        known = entry.shape, entry.shape_of(fragment.kind)
        if known != given:
            differing = next(pair for pair in zip(known, given, strict=True) if pair[0] != pair[1])
            raise ValueError(f"{fragment.name} is given with two shapes, {differing[0]} and {differing[1]}")
        size = held.numel * 4
        if size == 0:
            continue
        if not files or size > room:
            file = rank_name(rank) + (f"-{len(files)}" if files else "") + ".safetensors"
            files[file] = {}
            room = part_bytes
        room -= size
        key = f"{fragment.kind}/{fragment.name}" + (f"#{len(pieces)}" if pieces else "")
        slot = (fragment.name, fragment.kind, len(pieces))
        host = buffers.get(slot)
        if host is None or host.numel() * 4 != size:
            host = buffers[slot] = _host_memory(size // 4)
        host.copy_(fragment.tensor.detach())
        # A whole rectangle keeps its shape in the file, which other tools can then read.
        whole = held.numel == prod(held.sizes)
        files[file][key] = host.view(held.sizes) if whole else host
        pieces.append(Piece.of(held, file, key))
    return files, tensors


def _host_memory(size: int) -> torch.Tensor:
    """So many numbers; numpy asks the system for large pages, of which it needs far fewer."""
    return torch.from_numpy(np.empty(size, np.float32))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot copy {path} into the checkpoint: {error.strerror}") from None
