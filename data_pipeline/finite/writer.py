"""Writing .bin/.idx prefixes: a stream in bounded memory, which appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np

from data_pipeline.base.durable import sync_folder, temporary_path
from data_pipeline.base.errors import UserError, writing
from data_pipeline.finite.format import (
    BLOCK,
    DTYPES,
    HEADER,
    MAGIC,
    VERSION,
    IndexedDataset,
    bin_path,
    idx_path,
    places_path,
)

BUFFER_BYTES = 1 << 20
SPOOL_BYTES = 1 << 23
COPY_BYTES = 1 << 23
LARGEST_DOCUMENT = 2**31 - 1
"""Lengths are int32."""


class IndexedWriter:
    """Writes documents of one sequence each. Use it as a context manager: leaving without an error publishes the
    prefix, an error removes what was written.

    Beyond a few megabytes lengths wait in temporary files, so memory does not grow with the number of documents.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype | type, *, places: bool = False) -> None:
        """
        Args:
            prefix: where PREFIX.bin and PREFIX.idx are to appear; its folder is made.
            dtype: type of the token ids, one of the integers of the format.
            places: also write PREFIX.places, with the origin of each document.

        Raises:
            ValueError: a dtype that the format does not know.
        """
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        codes = {np.dtype(known): code for code, known in DTYPES.items()}
        if self.dtype not in codes:
            raise ValueError(f"{self.dtype} holds no token ids; use one of {', '.join(map(str, codes))}")
        self._code = codes[self.dtype]
        self.document_count = 0
        """Documents so far."""
        self.token_count = 0
        """Tokens so far."""
        self._sequences = 0
        self._with_places = places
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        # Nobody else writes to these names, so of two writers of one prefix the last to finish wins whole.
        self._temporary = str(temporary_path(Path(self.prefix)))
        self._files: dict[str, BinaryIO] = {}
        for kind in ("bin", *(("places",) if places else ())):
            self._files[kind] = open(f"{self._temporary}.{kind}", "xb", buffering=BUFFER_BYTES)  # noqa: SIM115
        for kind in ("lengths", "bounds"):
            # In memory while small, else a file without a name.
            waiting = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(Path(self.prefix).parent))  # noqa: SIM115
            self._files[kind] = cast(BinaryIO, waiting)
        self._files["bounds"].write(np.zeros(1, dtype="<i8").tobytes())

    def add(self, documents: Sequence[np.ndarray], places: np.ndarray | None = None) -> None:
        """Append documents.

        Args:
            documents: 1-D integer arrays of token ids; empty ones are kept.
            places: (len(documents), 2) integers, source file number and position; needed if the writer keeps places.

        Raises:
            ValueError: an id that the dtype cannot hold, or a document of more than 2^31 - 1 tokens.
            OSError: names the file, if it cannot be written.
        """
        if not documents:
            return
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        if lengths.max() > LARGEST_DOCUMENT:
            raise ValueError(f"a document has {lengths.max()} tokens, but the format holds {LARGEST_DOCUMENT} at most")
        tokens = np.concatenate(documents)
        limits = np.iinfo(self.dtype)
        if len(tokens) and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
            raise ValueError(f"token ids {tokens.min()} to {tokens.max()} do not fit {self.dtype}")
        bounds = self._sequences + np.arange(1, len(documents) + 1)
        with writing(bin_path(self.prefix)):
            self._files["bin"].write(tokens.astype(self.dtype.newbyteorder("<")).tobytes())
            self._files["lengths"].write(lengths.astype("<i4").tobytes())
            self._files["bounds"].write(bounds.astype("<i8").tobytes())
            if self._with_places:
                assert places is not None
                assert places.shape == (len(documents), 2)
                self._files["places"].write(places.astype("<i8").tobytes())
        self._sequences += len(documents)
        self.document_count += len(documents)
        self.token_count += len(tokens)

    def append(self, prefix: str | Path) -> None:
        """Append all documents of another prefix, in blocks of 8 MiB.

        Raises:
            UserError: the other prefix is damaged, has another dtype, or lacks the places that this one keeps.
        """
        other = IndexedDataset(prefix)
        if other.dtype != self.dtype:
            raise UserError(
                f"{idx_path(other.prefix)} has dtype {other.dtype}, but {idx_path(self.prefix)} has {self.dtype}; join"
                f" files of one dtype"
            )
        if self._with_places and other.places is None:
            raise UserError(f"{places_path(other.prefix)} is missing, but {self.prefix} keeps places; prepare it again")
        with writing(bin_path(self.prefix)):
            with open(bin_path(other.prefix), "rb") as stream:
                shutil.copyfileobj(stream, self._files["bin"], COPY_BYTES)
            if self._with_places:
                with open(places_path(other.prefix), "rb") as stream:
                    shutil.copyfileobj(stream, self._files["places"], COPY_BYTES)
            for lengths, bounds in other.index_blocks():
                self._files["lengths"].write(lengths.tobytes())
                self._files["bounds"].write((bounds + self._sequences).astype("<i8").tobytes())
        self._sequences += other.sequence_count
        self.document_count += other.document_count
        self.token_count += len(other.tokens)

    def close(self) -> None:
        """Write the index, force everything to the disk and give the files their names.

        The .idx comes last and an older one is removed first, so at every instant the prefix is whole or has no .idx.
        """
        with writing(idx_path(self.prefix)):
            for kind in ("bin", *(("places",) if self._with_places else ())):
                self._files[kind].flush()
                os.fsync(self._files[kind].fileno())
            with open(f"{self._temporary}.idx", "xb", buffering=BUFFER_BYTES) as file:
                self._write_index(file)
                file.flush()
                os.fsync(file.fileno())
            idx_path(self.prefix).unlink(missing_ok=True)
            os.replace(f"{self._temporary}.bin", bin_path(self.prefix))
            if self._with_places:
                os.replace(f"{self._temporary}.places", places_path(self.prefix))
            else:
                places_path(self.prefix).unlink(missing_ok=True)
            os.replace(f"{self._temporary}.idx", idx_path(self.prefix))
            sync_folder(Path(self.prefix).parent)
        self.discard()

    def discard(self) -> None:
        """Remove what has not been published; after `close`, nothing."""
        for file in self._files.values():
            # A full disk fails again when the buffer is flushed, but the file is not wanted any more.
            with contextlib.suppress(OSError):
                file.close()
        for kind in ("bin", "places", "idx") if self._files else ():
            Path(f"{self._temporary}.{kind}").unlink(missing_ok=True)
        self._files.clear()

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()

    def _write_index(self, file: BinaryIO) -> None:
        file.write(HEADER.pack(MAGIC, VERSION, self._code, self._sequences, self.document_count + 1))
        self._copy("lengths", file)
        end = 0
        self._files["lengths"].seek(0)
        while block := self._files["lengths"].read(4 * BLOCK):
            lengths = np.frombuffer(block, "<i4").astype(np.int64)
            ends = end + np.cumsum(lengths)
            file.write(((ends - lengths) * self.dtype.itemsize).astype("<i8").tobytes())
            end = int(ends[-1])
        self._copy("bounds", file)

    def _copy(self, kind: str, file: BinaryIO) -> None:
        self._files[kind].seek(0)
        shutil.copyfileobj(self._files[kind], file, COPY_BYTES)
