"""What a frozen body makes of rows, by what the rows are: in memory, and on disk for a run that starts again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from data_pipeline.base.durable import replace_file
from data_pipeline.base.terminal import warn
from data_pipeline.batch import Batch

_KEY_BYTES = 16
_NAME_DIGITS = 32
"""Hexadecimal digits of its contents' SHA-256 that a file is named by."""


def row_keys(batch: Batch) -> list[bytes]:
    """A key for each row of a batch on the CPU: of its tokens, segments and positions, without padding."""
    real = batch.encoder_weights
    lengths = [batch.inputs.shape[1]] * batch.size if real is None else ((real > 0).sum(1)).tolist()
    columns = [part.numpy() for part in (batch.inputs, batch.segment_ids, batch.positions) if part is not None]
    keys = []
    for row, length in enumerate(lengths):
        digest = hashlib.blake2b(digest_size=_KEY_BYTES)
        for column in columns:
            digest.update(np.ascontiguousarray(column[row, :length]).tobytes())
        keys.append(digest.digest())
    return keys


class FeatureStore:
    """Vectors by key. Files are written whole and never changed, and are named by a digest of what they hold: one that
    is damaged is removed when it is read, and what it held is computed again."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        """Read what there is.

        Args:
            folder: of one body; other processes may write to it too.
            writes: whether `flush` writes; else another rank has the same.
        """
        self._folder = folder
        self._writes = writes
        self._places: dict[bytes, int] = {}
        self._vectors = np.zeros((0, 0), dtype=np.float32)
        self._unsaved: list[bytes] = []
        for path in sorted(folder.glob("part-*.safetensors")) if folder.is_dir() else []:
            self._read(path)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, keys: Sequence[bytes]) -> Tensor | None:
        """(len(keys), channels) fp32 of rows, or None where some of them are not there."""
        places = [self._places.get(key) for key in keys]
        if None in places:
            return None
        return torch.from_numpy(self._vectors[np.array(places, dtype=np.int64)])

    def add(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        """Keep (len(keys), channels) vectors; of a key that there is, what there was."""
        new = {key: row for row, key in enumerate(keys) if key not in self._places}
        self._insert(list(new), vectors.float().cpu().numpy()[list(new.values())])
        self._unsaved += new

    def flush(self) -> None:
        """Write what has been added since, and force it to the disk.

        Raises:
            OSError: the disk is full, or any other failure to write.
        """
        keys, self._unsaved = self._unsaved, []
        if not (keys and self._writes):
            return
        rows = np.array([self._places[key] for key in keys], dtype=np.int64)
        held = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES)
        data = save({"keys": held, "vectors": self._vectors[rows]})
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / f"part-{_name(data)}.safetensors", data, durable=True)

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            if path.stem.removeprefix("part-") != _name(data):
                raise ValueError("its contents are others than its name says")
            held = load(data)
            keys = [row.tobytes() for row in held["keys"]]
            self._insert(keys, held["vectors"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warn(f"{path} is damaged ({error}) and is made again")
            if self._writes:
                path.unlink(missing_ok=True)

    def _insert(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        new = [row for row, key in enumerate(keys) if key not in self._places]
        if not new:
            return
        count, total = len(self._places), len(self._places) + len(new)
        if total > len(self._vectors):
            grown = np.zeros((max(total, 2 * len(self._vectors)), vectors.shape[1]), dtype=np.float32)
            if count:
                grown[:count] = self._vectors[:count]
            self._vectors = grown
        self._vectors[count:total] = vectors[new]
        self._places.update((keys[row], count + place) for place, row in enumerate(new))


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_NAME_DIGITS]
