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

from llmscale.checkpoint.manifest import FileEntry

if TYPE_CHECKING:
    import torch

_CHUNK = 16 << 20


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> FileEntry:
    """Write contiguous float32 CPU tensors and force them to the disk; returns size and SHA-256.

    Raises:
        OSError: the disk is full, or any other failure to write.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb", buffering=0) as file:
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
    for tensor in tensors.values():
        data = memoryview(tensor.reshape(-1).numpy()).cast("B")
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]
