"""Files of vectors, written so that a kill at any instant loses little and the next start goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_pipeline.base.durable import json_bytes, parse_json, read_file, replace_file, replacing, unlinked
from data_pipeline.base.errors import UserError, writing

ENDINGS = (".npy", ".jsonl")


@dataclass(frozen=True)
class Meta:
    """What decides the vectors: a start that differs in any of it starts over."""

    model: str
    """Digest of the checkpoint."""
    texts: str
    """Digest of all texts."""
    settings: dict[str, Any]
    channels: int


def digest_of(texts: Sequence[str]) -> str:
    """Of the texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class VectorWriter:
    """Appends vectors to a file beside the output, which becomes the output once they are all there."""

    def __init__(self, output: Path, meta: Meta) -> None:
        """
        Raises:
            UserError: the output's name says no format that there is, or it cannot be written.
        """
        if output.suffix not in ENDINGS:
            raise UserError(f"--output is {output}, but must end in {' or '.join(ENDINGS)}; give it one of them")
        self.output, self._meta = output, meta
        self._about = output.with_name(f".{output.name}.partial.json")
        self._path = output.with_name(f".{output.name}.partial")
        self._bytes = 4 * meta.channels
        written = json_bytes(vars(meta))
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if not self._continues(written):
                self._path.unlink(missing_ok=True)
                replace_file(self._about, written)
            self._file = open(self._path, "ab", opener=unlinked)  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"--output: cannot write {error.filename or output} ({error.strerror}); name another file"
            ) from None
        self.done = self._file.tell() // self._bytes
        """Vectors that an earlier start has written."""
        # What a dead writer left of a vector.
        self._file.truncate(self.done * self._bytes)

    def append(self, vectors: np.ndarray) -> None:
        """Write the next vectors, (n, channels) float32, and see that they are on the disk."""
        with writing(self._path):
            self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, texts: Sequence[str]) -> None:
        """Make the output of the vectors, one for each of the texts."""
        self._file.close()
        shape = (len(texts), self._meta.channels)
        vectors: np.ndarray = np.memmap(self._path, dtype="<f4", mode="r", shape=shape)
        with replacing(self.output, durable=True) as file:
            if self.output.suffix == ".npy":
                np.lib.format.write_array(file, vectors, allow_pickle=False)
            else:
                for text, vector in zip(texts, vectors, strict=True):
                    row = {"text": text, "embedding": np.ascontiguousarray(vector)}
                    file.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        self._path.unlink()
        self._about.unlink()

    def _continues(self, written: bytes) -> bool:
        try:
            return read_file(self._about) == written and self._path.exists()
        except OSError:
            return False


def read_vectors(path: Path, texts: int) -> np.ndarray:
    """(N, channels) float32: what a file of vectors holds, one for each of so many texts.

    Raises:
        UserError: it cannot be read, is no such file, or has another number of rows.
    """
    try:
        vectors = _of_jsonl(path) if path.suffix == ".jsonl" else np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"--embeddings: cannot read {path}: {error.strerror}; name a file of llmscale embed") from None
    except (ValueError, KeyError, TypeError, EOFError):
        raise UserError(f"--embeddings: {path} holds no vectors; name a file that llmscale embed has written") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
        raise UserError(
            f"--embeddings: {path} holds {vectors.dtype} of shape {list(vectors.shape)}, but a finite vector for each"
            f" text is needed; name a file that llmscale embed has written"
        )
    if len(vectors) != texts:
        raise UserError(
            f"--embeddings: {path} has {len(vectors):,} rows, but --input has {texts:,} texts; name the file that was"
            f" made of these texts"
        )
    return vectors.astype(np.float32)


def _of_jsonl(path: Path) -> np.ndarray:
    rows = [parse_json(line)["embedding"] for line in read_file(path).splitlines() if line.strip()]
    return np.array(rows, dtype=np.float32)
