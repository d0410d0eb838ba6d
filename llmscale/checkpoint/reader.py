"""Reading checkpoints: any slice of any tensor, whatever layout wrote it."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.durable import NO_REGULAR_FILE, parse_json, read_file
from data_pipeline.base.errors import UserError, first_line
from llmscale.checkpoint.errors import CorruptCheckpoint
from llmscale.checkpoint.manifest import CURSOR, TOKENIZER, Piece, TensorEntry, read_manifest
from llmscale.checkpoint.members import recorded_identity, why_stranger
from llmscale.checkpoint.store import find_checkpoints
from llmscale.checkpoint.tensor_file import FiniteCheck
from llmscale.slices.boxes import take
from llmscale.slices.tensor_slice import TensorSlice

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK = 16 << 20
_log = logging.getLogger(__name__)


class Checkpoint:
    """One checkpoint on disk. Opening it reads only the manifest; `verify` reads the files.

    Files stay mapped until `close` (or the end of a `with` block); what `read` returned stays valid.

    Raises:
        CorruptCheckpoint: the manifest is missing or damaged.
        UserError: the manifest has a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files."""
        self._open.clear()

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.manifest.step

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors."""
        return list(self.manifest.tensors)

    def kinds(self, name: str) -> list[str]:
        """What is stored of a tensor, such as weight, exp_avg and exp_avg_sq."""
        return list(self._tensor(name).kinds)

    def shape(self, name: str, kind: str = "weight") -> tuple[int, ...]:
        """Global shape of a tensor, or of a kind that has a shape of its own."""
        return self._tensor(name).shape_of(kind)

    def read(self, name: str, wanted: TensorSlice, kind: str = "weight") -> torch.Tensor:
        """The values of a slice of a tensor. Only the pages of the files that hold it are read.

        Args:
            wanted: of the shape that this kind has.

        Returns:
            (wanted.numel,) float32 on the CPU.

        Raises:
            UserError: the checkpoint has no such tensor or kind, or it has another shape.
            CorruptCheckpoint: the pieces do not cover the slice, or a file is damaged.
        """
        import torch

        entry = self._tensor(name)
        stored = entry.shape_of(kind)
        if stored != wanted.shape:
            what = name if stored == entry.shape else f"{kind} of {name}"
            raise UserError(
                f"{what} has shape {list(stored)} in {self.path}, but {list(wanted.shape)} in the model;"
                f" make the model section that of the checkpoint"
            )
        if kind not in entry.kinds:
            raise UserError(f"{self.path} has no {kind} of {name}, only {', '.join(entry.kinds)}")
        result = torch.empty(wanted.numel, dtype=torch.float32)
        missing = wanted.boxes()
        for held, piece in entry.slices(kind):
            if not missing:
                break
            found, missing = take(missing, held.boxes())
            if found:
                data = self._data(piece)
                for box in found:
                    wanted.view(result, box).copy_(held.view(data, box))
        if missing:
            low, high = missing[0]
            raise CorruptCheckpoint(f"{self.path} lacks elements {list(low)} to {list(high)} of {kind} of {name}")
        return result

    def full(self, name: str, kind: str = "weight", shape: Sequence[int] | None = None) -> torch.Tensor:
        """A whole tensor in its global shape, which must be `shape` where that is given; float32 on the CPU.

        Raises as `read` does.
        """
        shape = self.shape(name, kind) if shape is None else shape
        return self.read(name, TensorSlice.whole(shape), kind).view(tuple(shape))

    def cursor(self) -> dict[str, Any]:
        """The merged data cursor.

        Raises:
            CorruptCheckpoint: its file is missing or damaged.
        """
        if CURSOR not in self.manifest.files:
            raise CorruptCheckpoint(f"{self.path} has no {CURSOR}")
        problem = self._check(CURSOR, lambda _: None)
        if problem:
            raise CorruptCheckpoint(problem)
        try:
            found = parse_json(read_file(self.path / CURSOR))
        except (OSError, ValueError) as error:
            raise CorruptCheckpoint(f"{self.path / CURSOR} cannot be read: {first_line(error)}") from None
        if not isinstance(found, dict):
            raise CorruptCheckpoint(f"{self.path / CURSOR} holds no object")
        return found

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files.

        Raises:
            UserError: the checkpoint was saved without one.
        """
        if not any(name.startswith(f"{TOKENIZER}/") for name in self.manifest.files):
            raise UserError(f"{self.path} was saved without a tokenizer")
        return self.path / TOKENIZER

    def verify(self, share: tuple[int, int] = (0, 1), progress: Progress | None = None) -> None:
        """Compare size and SHA-256 of every file with the manifest, and look for values that are not finite.

        Args:
            share: (i, n): only the i-th of n parts of the files, of about equal bytes, so that n ranks share the work.
            progress: called as the files are read.

        Raises:
            CorruptCheckpoint: names each bad file and what is wrong with it.
        """
        index, count = share
        ordered = sorted(self.manifest.files, key=lambda name: (-self.manifest.files[name].bytes, name))
        mine = ordered[index::count]
        total = sum(self.manifest.files[name].bytes for name in mine)
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(done, total)

        problems = [problem for name in mine if (problem := self._check(name, advance))]
        if problems:
            raise CorruptCheckpoint("; ".join(sorted(problems)))

    def _check(self, name: str, advance: Callable[[int], None]) -> str | None:
        path, entry = self.path / name, self.manifest.files[name]
        digest = hashlib.sha256()
        finite = FiniteCheck() if name.endswith(".safetensors") else None
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise OSError(errno.ENXIO, NO_REGULAR_FILE)
            if size != entry.bytes:
                return f"{path} has {size} bytes instead of {entry.bytes}"
            # Buffered, so that no chunk but the last is short.
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    if finite is not None:
                        finite.update(chunk)
                    advance(len(chunk))
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if digest.hexdigest() != entry.sha256:
            return f"{path} is damaged: its SHA-256 has changed"
        if finite is not None and finite.found is not None:
            return f"{path} holds values that are not finite (NaN or Inf) in {finite.found}"
        return None

    def _tensor(self, name: str) -> TensorEntry:
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise UserError(f"{self.path} has no tensor {name}; make the model section that of the checkpoint")
        return entry

    def _data(self, piece: Piece) -> torch.Tensor:
        """A piece, flat and not yet read: the library maps the file."""
        from safetensors import SafetensorError, safe_open

        path = self.path / piece.file
        try:
            if piece.file not in self._open:
                if path.exists() and not path.is_file():
                    raise CorruptCheckpoint(f"{path} is no regular file")
                self._open[piece.file] = safe_open(path, framework="pt")
            data = self._open[piece.file].get_slice(piece.key)[...]
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise CorruptCheckpoint(f"cannot read {path}: {error}") from None
        if data.numel() != piece.end - piece.start:
            raise CorruptCheckpoint(f"{piece.key} in {path} has {data.numel()} elements, not {piece.end - piece.start}")
        return data.reshape(-1)


def newest_intact(directory: str | Path, warn: Callable[[str], None] = _log.warning) -> Checkpoint:
    """The newest checkpoint whose files all match its manifest, and which is the run's (see `why_stranger`).

    Args:
        directory: a run directory, its `checkpoints` folder, or one checkpoint, which may have any name.
        warn: called with a sentence for each checkpoint that is skipped.

    Raises:
        CorruptCheckpoint: there are checkpoints, but none is intact.
        UserError: no such directory, no checkpoint in it, or one of a newer format.
    """
    reasons: list[str] = []
    paths = find_checkpoints(directory)
    listed = paths != [Path(directory)]
    run = recorded_identity(Path(directory)) if listed else None
    for path in paths:
        try:
            checkpoint = Checkpoint(path)
            if listed and (stranger := why_stranger(path, checkpoint.manifest, run)):
                raise CorruptCheckpoint(stranger)
            checkpoint.verify()
            return checkpoint
        except CorruptCheckpoint as error:
            reasons.append(str(error))
            warn(f"skipping checkpoint {path.name}: {error}")
    if not reasons:
        raise UserError(f"{directory} holds no checkpoint yet; give a run that has saved one")
    raise CorruptCheckpoint(f"no checkpoint in {directory} is intact: {'; '.join(reasons)}")
