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
MOST_BYTES = 16 << 30
"""Bytes of vectors that a process keeps in memory."""
_NAME_DIGITS = 32
"""Hexadecimal digits of its contents' SHA-256 that a file is named by."""


def row_lengths(batch: Batch) -> list[int]:
    """Tokens of each row of a batch on the CPU, without padding."""
    padding_mask = batch.encoder_weights
    return [batch.inputs.shape[1]] * batch.size if padding_mask is None else (padding_mask > 0).sum(1).tolist()


def row_keys(batch: Batch) -> list[bytes]:
    """A key for each row of a batch on the CPU: of its tokens, segments and positions, without padding."""
    parts = (batch.inputs, batch.segment_ids, batch.positions, batch.encoder_inputs)
    columns = [part.numpy() for part in parts if part is not None]
    keys = []
    for row, length in enumerate(row_lengths(batch)):
        digest = hashlib.blake2b(digest_size=_KEY_BYTES)
        for column in columns:
            digest.update(np.ascontiguousarray(column[row, :length]).tobytes())
        keys.append(digest.digest())
    return keys


class FeatureStore:
    """Vectors by key, one or several of each. Files are written whole and never changed, and are named by a digest of
    what they hold: one that is damaged is removed when it is read, and what it held is computed again."""

    def __init__(self, folder: Path, writes: bool = True, most_bytes: int = MOST_BYTES) -> None:
        """Read what there is.

        Args:
            folder: of one body; other processes may write to it too.
            writes: whether `flush` writes; else another rank has the same.
            most_bytes: of vectors in memory; what is added beyond is not kept.
        """
        self._folder = folder
        self._writes = writes
        self._most = most_bytes
        self._full = False
        self._count = 0
        self._places: dict[bytes, range] = {}
        self._vectors = np.zeros((0, 0), dtype=np.float32)
        self._unsaved: list[bytes] = []
        for path in sorted(folder.glob("part-*.safetensors")) if folder.is_dir() else []:
            self._read(path)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, keys: Sequence[bytes]) -> Tensor | None:
        """(vectors, channels) fp32 of rows, one row behind the other, or None where some of them are not there."""
        places = [self._places.get(key) for key in keys]
        if any(place is None for place in places):
            return None
        rows = np.concatenate([np.asarray(place, dtype=np.int64) for place in places])
        return torch.from_numpy(self._vectors[rows])

    def add(self, keys: Sequence[bytes], vectors: Tensor, lengths: Sequence[int]) -> None:
        """Keep (sum(lengths), channels) vectors, so many of each key; of a key that there is, what there was, and of
        one that stands twice, the last."""
        self._unsaved += self._insert(keys, vectors.float().cpu().numpy(), lengths)

    def flush(self) -> None:
        """Write what has been added since, and force it to the disk.

        Raises:
            OSError: the disk is full, or any other failure to write.
        """
        keys, self._unsaved = self._unsaved, []
        if not (keys and self._writes):
            return
        places = [self._places[key] for key in keys]
        rows = np.concatenate([np.asarray(place, dtype=np.int64) for place in places])
        held = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES)
        lengths = np.array([len(place) for place in places], dtype=np.int64)
        data = save({"keys": held, "lengths": lengths, "vectors": self._vectors[rows]})
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / f"part-{_name(data)}.safetensors", data, durable=True)

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            if path.stem.removeprefix("part-") != _name(data):
                raise ValueError("its contents are others than its name says")
            held = load(data)
            keys = [row.tobytes() for row in held["keys"]]
            # Files of earlier releases have one vector of each key.
            self._insert(keys, held["vectors"], held["lengths"].tolist() if "lengths" in held else [1] * len(keys))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warn(f"{path} is damaged ({error}) and is made again")
            if self._writes:
                path.unlink(missing_ok=True)

    def _insert(self, keys: Sequence[bytes], vectors: np.ndarray, lengths: Sequence[int]) -> list[bytes]:
        """The keys that were not there and are now."""
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        if starts[-1] != len(vectors) or len(keys) != len(lengths):
            raise ValueError(f"it holds {len(vectors)} vectors for {len(keys)} keys, which have {starts[-1]}")
        new = {key: number for number, key in enumerate(keys) if key not in self._places}
        rows = [row for number in new.values() for row in range(starts[number], starts[number + 1])]
        total = self._count + len(rows)
        if not rows or not self._has_room(total, vectors.shape[1]):
            return []
        if total > len(self._vectors):
            grown = np.zeros((max(total, 2 * len(self._vectors)), vectors.shape[1]), dtype=np.float32)
            if self._count:
                grown[: self._count] = self._vectors[: self._count]
            self._vectors = grown
        self._vectors[self._count : total] = vectors[rows]
        for key, number in new.items():
            self._places[key] = range(self._count, self._count + lengths[number])
            self._count += lengths[number]
        return list(new)

    def _has_room(self, vectors: int, channels: int) -> bool:
        if vectors * channels * 4 <= self._most:
            return True
        if not self._full:
            self._full = True
            warn(
                f"what the body makes of rows takes more than {self._most / 2**30:.0f} GiB of memory, so that further"
                f" rows are computed at every step"
            )
        return False


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_NAME_DIGITS]
