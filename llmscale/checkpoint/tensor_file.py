"""Writing safetensors files straight from memory, hashed on the way.

The library's own writer turns every tensor into bytes first (a second copy of the model) and reports a full disk
without its errno; the format is eight bytes of header length, a JSON header and the raw data, so it is written here.
Reading is left to the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.base.durable import unlinked
from llmscale.checkpoint.errors import NotFiniteError
from llmscale.checkpoint.manifest import FileEntry

if TYPE_CHECKING:
    import torch

_CHUNK = 16 << 20


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> FileEntry:
    """Write contiguous float32 CPU tensors and force them to the disk; returns size and SHA-256.

    Raises:
        NotFiniteError: names the first tensor that holds NaN or Inf; the file is then cut short.
        OSError: the disk is full, or any other failure to write.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb", buffering=0, opener=unlinked) as file:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            size += len(chunk)
            written = 0
            while written < len(chunk):  # An unbuffered write may stop short.
                written += file.write(chunk[written:])
        os.fsync(file.fileno())
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def _chunks(tensors: dict[str, torch.Tensor]) -> Iterator[memoryview]:
    entries: dict[str, object] = {}
    position = 0
    for key, tensor in tensors.items():
        end = position + tensor.numel() * 4
        entries[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for key, tensor in tensors.items():
        data = memoryview(tensor.reshape(-1).numpy()).cast("B")
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            if first_not_finite(chunk) is not None:
                raise NotFiniteError(shown_key(key))
            yield chunk


def first_not_finite(data: bytes | memoryview) -> int | None:
    """Index of the first float32 of `data` (little-endian) that is NaN or Inf; None: all are finite."""
    values = np.frombuffer(data, dtype="<f4", count=len(data) // 4)
    finite = np.isfinite(values)
    return None if finite.all() else int(finite.argmin())


def shown_key(key: str) -> str:
    """`exp_avg/head.weight#1` as messages call it: `exp_avg of head.weight`."""
    kind, _, name = key.partition("/")
    return f"{kind} of {name.partition('#')[0]}"


class FiniteCheck:
    """Looks at a safetensors file as it is read, chunk after chunk of multiples of four bytes, for NaN and Inf."""

    def __init__(self) -> None:
        self._head = b""
        self._start: int | None = None
        self._position = 0
        self.found: str | None = None
        """The first tensor that has one, as `shown_key` gives it."""

    def update(self, chunk: bytes) -> None:
        """Look at the next chunk; nothing more is looked at once something was found."""
        if self._start is None:
            self._head += chunk
            if len(self._head) < 8:
                return
            header = 8 + int.from_bytes(self._head[:8], "little")
            if len(self._head) < header:
                return
            self._start, self._position, chunk = header, header, self._head[header:]
            self._head = self._head[:header]
        if self.found is None and (place := first_not_finite(chunk)) is not None:
            self.found = self._tensor_at(self._position - self._start + 4 * place)
        self._position += len(chunk)

    def _tensor_at(self, offset: int) -> str:
        try:
            entries = json.loads(self._head[8:])
            for key, entry in entries.items():
                if key != "__metadata__" and entry["data_offsets"][0] <= offset < entry["data_offsets"][1]:
                    return shown_key(key)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # not what we wrote, which the file's SHA-256 says
        return "a tensor"
