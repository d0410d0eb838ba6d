"""Bytes of local and remote files at any offset, plain or decompressed, with few files open."""

from __future__ import annotations

import os
import zlib
from typing import Any, BinaryIO

from data_pipeline.base.encodings import UTF8, ToUtf8, cuts_at_newlines
from data_pipeline.sources.files import FileEntry, file_system, is_remote
from data_pipeline.sources.readers.base import RecentlyUsed, unreadable
from data_pipeline.sources.readers.zstd import frame_at, frame_content, window_bytes

OPEN_FILES = 32
"""Local files that a process keeps open per source."""
REMOTE_CHUNK = 1 << 20
"""Bytes of a remote file that are asked for at once."""
CACHED_BYTES = 1 << 28
"""Most bytes per source of remote chunks, and of decoders in the middle of a file."""
_OUTPUT_BYTES = 1 << 16
_ZSTD_INPUT = 1 << 12
"""A frame can expand 32,000 times, and the library has no limit of output: little is handed to it at once."""


class Files:
    """Reads parts of files. Not shared between processes: `close` before a fork."""

    def __init__(self) -> None:
        self._local: RecentlyUsed[str, BinaryIO] = RecentlyUsed(OPEN_FILES, lambda stream: stream.close())
        self._remote: RecentlyUsed[tuple[str, int], bytes] = RecentlyUsed(CACHED_BYTES)

    def read(self, file: FileEntry, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer than `size` only at its end. Raises UserError where it cannot be read."""
        path = file.path
        if is_remote(path):
            return self._read_remote(path, offset, min(size, file.size - offset))
        try:
            stream = self._local.get(path)
            if stream is None:
                stream = self._local.put(path, open(path, "rb", buffering=0))  # noqa: SIM115
            data = os.pread(stream.fileno(), size, offset)
            while len(data) < size:
                more = os.pread(stream.fileno(), size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise unreadable(path, error) from None
        return data

    def open(self, path: str) -> Any:
        """The file for a library that reads by itself: the path of a local file, an open remote one."""
        if not is_remote(path):
            return path
        system, inner = file_system(path)
        return system.open(inner, "rb", block_size=REMOTE_CHUNK)

    def close(self) -> None:
        """Close all files."""
        self._local.close()
        self._remote.close()

    def _read_remote(self, path: str, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        parts = [
            self._chunk(path, place) for place in range(offset // REMOTE_CHUNK, -(-(offset + size) // REMOTE_CHUNK))
        ]
        start = offset % REMOTE_CHUNK
        return b"".join(parts)[start : start + size]

    def _chunk(self, path: str, number: int) -> bytes:
        found = self._remote.get((path, number))
        if found is not None:
            return found
        start = number * REMOTE_CHUNK
        try:
            system, inner = file_system(path)
            data = system.cat_file(inner, start=start, end=start + REMOTE_CHUNK)
        except Exception as error:  # every file system raises its own
            raise unreadable(path, error) from None
        return self._remote.put((path, number), data, len(data) + 1)


class PlainBytes:
    """The bytes of a file as they are."""

    problem: str | None = None
    weight = 0

    def __init__(self, files: Files, file: FileEntry) -> None:
        self._files = files
        self._file = file

    def fetch(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on, fewer only at the end; raises UserError where the file has become shorter."""
        data = self._files.read(self._file, offset, size)
        if len(data) < size and offset + len(data) < self._file.size:
            raise unreadable(
                self._file.path, f"it has become shorter than the {self._file.size} bytes that it had at the start"
            )
        return data


class DecompressedBytes:
    """The bytes of a gzip or Zstandard file after decompression.

    Reading on is cheap. Going back, or far ahead, starts again at the nearest Zstandard frame whose place is known
    from sizes in the frames' heads, else at the file's start: a gzip file, or a single frame, is decompressed up to
    the offset.
    """

    def __init__(self, files: Files, file: FileEntry) -> None:
        self._files = files
        self._file = file
        self._zstd = file.path.endswith(".zst")
        self.problem: str | None = None
        """What is wrong with the file, known once the bytes before it were fetched: it is cut short or damaged."""
        self._restart(0, 0)

    @property
    def weight(self) -> int:
        """About the bytes of memory that this takes."""
        window = window_bytes(self._files.read(self._file, 0, 18)) if self._zstd else 1 << 15
        return window + 4 * _OUTPUT_BYTES

    def fetch(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on, fewer only at the end or where the file is damaged: see `problem`."""
        if offset < self._start or (self._zstd and offset > self._start + len(self._buffer) + (1 << 20)):
            self._go_to(offset)
        buffer = self._buffer
        while self._start + len(buffer) < offset + size and not self._ended:
            passed = min(offset - self._start, len(buffer))
            if passed > 0:
                del buffer[:passed]
                self._start += passed
            buffer += self._more()
        place = offset - self._start
        return bytes(buffer[place : place + size]) if place >= 0 else b""

    def _go_to(self, offset: int) -> None:
        found = (
            frame_at(lambda place, size: self._files.read(self._file, place, size), offset) if self._zstd else (0, 0)
        )
        # A frame behind the current place is no help.
        if found[1] > self._start or offset < self._start:
            self._restart(*found)

    def _restart(self, place: int, start: int) -> None:
        self._place = place
        self._start = start
        self._buffer = bytearray()
        self._input = b""
        self._decoder: Any = None
        self._expected: int | None = None
        """Bytes that the current frame says it has; None where it does not say, as no gzip file does."""
        self._frame_start = start
        self._ended = False
        self.problem = None

    def _more(self) -> bytes:
        """Decompress some more; empty at the end, and between members."""
        if not self._input:
            self._input = self._files.read(self._file, self._place, _OUTPUT_BYTES)
            self._place += len(self._input)
        at_end = not self._input
        if self._decoder is None:
            if not self._zstd:
                self._input = self._input.lstrip(b"\0")  # gzip allows padding between members
            if self._input:
                self._decoder = self._new_decoder()
            else:
                self._ended = at_end
                return b""
        try:
            data = self._decompress()
        except Exception as error:  # zlib.error, zstandard.ZstdError
            place = self._place - len(self._input)
            rest = self._file.size - place
            lost = (
                f"about its last {rest:,} bytes of {self._file.size:,}, {rest / max(1, self._file.size):.0%}, are lost"
            )
            return self._stop(f"damaged: {error} ({lost})")
        if self._decoder is None or data or not at_end:
            return data
        return self._stop(f"cut short ({self._missing()})")

    def _missing(self) -> str:
        """How much of a file that is cut short is lost; only Zstandard tells how much there should be."""
        had = self._start + len(self._buffer)
        if self._expected is None:
            return f"what came behind its first {had:,} bytes of text is lost, and how much that was, it does not tell"
        lost = 1 - (had - self._frame_start) / max(1, self._expected)
        return f"{lost:.0%} of the {self._expected:,} bytes of its last frame are lost"

    def _decompress(self) -> bytes:
        decoder = self._decoder
        if self._zstd:
            given, rest = self._input[:_ZSTD_INPUT], self._input[_ZSTD_INPUT:]
            data = decoder.decompress(given)
            self._input = decoder.unused_data + rest
        else:
            data = decoder.decompress(self._input, _OUTPUT_BYTES)
            self._input = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        if decoder.eof:
            self._decoder = None
        return data

    def _stop(self, problem: str) -> bytes:
        self._ended = True
        self.problem = problem
        return b""

    def _new_decoder(self) -> Any:
        if not self._zstd:
            return zlib.decompressobj(wbits=31)
        import zstandard

        self._frame_start = self._start + len(self._buffer)
        self._expected = frame_content(self._input[:18])
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


class ConvertedBytes:
    """The bytes of a text as UTF-8, for encodings whose files cannot be cut at newlines. Reading on is cheap; going
    back starts again."""

    def __init__(self, source: PlainBytes | DecompressedBytes, encoding: str) -> None:
        self._source = source
        self._encoding = encoding
        self._ended = False
        self._restart()

    @property
    def problem(self) -> str | None:
        """As of `DecompressedBytes`."""
        return self._source.problem

    @property
    def weight(self) -> int:
        """About the bytes of memory that this takes."""
        return self._source.weight + 8 * _OUTPUT_BYTES

    def fetch(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on, fewer only at the end or where the file is damaged: see `problem`."""
        if offset < self._start:
            self._restart()
        buffer = self._buffer
        while self._start + len(buffer) < offset + size and not self._ended:
            passed = min(offset - self._start, len(buffer))
            del buffer[:passed]
            self._start += passed
            data = self._source.fetch(self._place, _OUTPUT_BYTES)
            self._place += len(data)
            self._ended = len(data) < _OUTPUT_BYTES
            buffer += self._decoder.feed(data, final=self._ended)
        place = offset - self._start
        return bytes(buffer[place : place + size])

    def _restart(self) -> None:
        self._place = self._start = 0
        self._buffer = bytearray()
        self._decoder = ToUtf8(self._encoding)
        self._ended = False


ByteSource = PlainBytes | DecompressedBytes | ConvertedBytes


class ByteSources:
    """The bytes of files as their readers take them: decompressed, and as UTF-8 where they cannot be cut otherwise."""

    def __init__(self, files: Files, encoding: str = UTF8) -> None:
        self._files = files
        self._converted = None if cuts_at_newlines(encoding) else encoding
        self.encoding = encoding if self._converted is None else UTF8
        """What the bytes are in that a source of here gives."""
        self._streams: RecentlyUsed[str, ByteSource] = RecentlyUsed(CACHED_BYTES)

    def is_stream(self, file: FileEntry) -> bool:
        """Whether a file is read from its start on to reach a place in it, and how long it is only reading tells."""
        return is_compressed(file.path) or self._converted is not None

    def open(self, file: FileEntry) -> ByteSource:
        """A source of a file, which nobody else moves."""
        source = DecompressedBytes(self._files, file) if is_compressed(file.path) else PlainBytes(self._files, file)
        return source if self._converted is None else ConvertedBytes(source, self._converted)

    def get(self, file: FileEntry) -> ByteSource:
        """The source of a file that this has kept from its last use."""
        if not self.is_stream(file):
            return PlainBytes(self._files, file)
        found = self._streams.get(file.path)
        if found is None:
            found = self.open(file)
            self._streams.put(file.path, found, found.weight)
        return found

    def close(self) -> None:
        """Close all files."""
        self._streams.close()
        self._files.close()


def is_compressed(path: str) -> bool:
    """Whether a file is read through a decompressor."""
    return path.endswith((".gz", ".zst"))
