"""Parallel corpora: two files of which each line of one is the translation of the same line of the other."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import xxhash

from data_pipeline.base.errors import UserError
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import LineNumbers
from data_pipeline.sources.readers.base import Block, RecentlyUsed, Span, no_records
from data_pipeline.sources.readers.extract import Extractor, decode
from data_pipeline.sources.readers.separated import BOM
from data_pipeline.sources.readers.storage import ByteSources, is_compressed

LINES = 256
"""Lines of a block."""
_CHUNK = 1 << 22
_COUNTERS = 64


class ParallelReader:
    """Reads pairs of lines; a position is the byte at which the line of the first file begins."""

    def __init__(
        self, sources: ByteSources, files: Sequence[FileEntry], targets: Sequence[FileEntry], extractor: Extractor
    ) -> None:
        """`targets`: the second file of each of `files`."""
        self._sources = sources
        self._target_of = {file.path: target for file, target in zip(files, targets, strict=True)}
        self._extractor = extractor
        self._starts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._lines: RecentlyUsed[str, LineNumbers] = RecentlyUsed(_COUNTERS)

    def spans(self, files: Sequence[FileEntry], limit: int) -> list[Span]:
        """Spans of about `limit` bytes, of whole blocks.

        Raises:
            UserError: two files that belong together have different numbers of lines.
        """
        spans: list[Span] = []
        for index, file in enumerate(files):
            starts, _ = self._blocks(file)
            blocks = len(starts) - 1
            if not blocks:
                continue
            count = min(blocks, max(1, -(-int(starts[-1]) // limit)))
            edges = [int(starts[blocks * part // count]) for part in range(count + 1)]
            spans += [Span(index, start, stop, stop - start) for start, stop in itertools.pairwise(edges)]
        return spans

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        starts, target_starts = self._blocks(file)
        number = max(0, bisect_right(starts.tolist(), position) - 1)
        stop = min(span.stop, int(starts[-1]))
        if position >= stop:
            return no_records(None)
        places, texts = self._texts(file, starts, number)
        _, targets = self._texts(self._target_of[file.path], target_starts, number)
        rows = [
            (place, {"text": text, "target": target})
            for place, text, target in zip(places, texts, targets, strict=True)
            if position <= place < stop
        ]
        bad, lines = self._extractor.bad, self._line_numbers(file)
        bad.records_read += len(rows)

        def note(place: int, reason: str, detail: str) -> None:
            bad.note(reason, file.path, place, detail, lines=lines)

        following = int(starts[number + 1])
        next_position = following if following < stop else None
        return self._extractor.records([place for place, _ in rows], [row for _, row in rows], note, next_position)

    def close(self) -> None:
        self._lines.close()
        self._sources.close()

    def _texts(self, file: FileEntry, starts: np.ndarray, number: int) -> tuple[list[int], list[str]]:
        """Where the lines of a block begin, and their texts."""
        begin, end = int(starts[number]), int(starts[number + 1])
        data = self._sources.get(file).fetch(begin, end - begin)
        lines = data.split(b"\n")
        if data.endswith(b"\n"):
            lines.pop()
        places = (begin + np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])).tolist()
        bad, numbers = self._extractor.bad, self._line_numbers(file)

        def note(place: int, reason: str, detail: str) -> None:
            bad.note(reason, file.path, place, detail, lines=numbers)

        texts = []
        for place, line in zip(places, lines, strict=True):
            text = decode(line.removeprefix(BOM) if place == 0 else line, place, note, self._sources.encoding)
            texts.append(text.removesuffix("\r"))
        return places, texts

    def _line_numbers(self, file: FileEntry) -> LineNumbers:
        return self._lines.get(file.path) or self._lines.put(file.path, LineNumbers(self._sources.open(file)))

    def _blocks(self, file: FileEntry) -> tuple[np.ndarray, np.ndarray]:
        """Where each block begins in both files, and where the last one ends. Both are gone through once."""
        if file.path not in self._starts:
            target = self._target_of[file.path]
            (first, lines), (second, others) = self._block_starts(file), self._block_starts(target)
            if lines != others:
                raise UserError(
                    f"{file.path} has {lines:,} lines, but {target.path} has {others:,}; give files whose lines belong"
                    f" together"
                )
            self._starts[file.path] = first, second
        return self._starts[file.path]

    def _block_starts(self, file: FileEntry) -> tuple[np.ndarray, int]:
        source = self._sources.open(file)
        starts, lines, size = [0], 0, 0
        last = b"\n"
        while data := source.fetch(size, _CHUNK):
            ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
            # Of every LINES-th newline of the file, the byte behind it begins a block.
            chosen = ends[(-(lines + 1)) % LINES :: LINES]
            starts += (size + chosen + 1).tolist()
            lines, size, last = lines + len(ends), size + len(data), data[-1:]
        lines += last != b"\n"
        if starts[-1] != size:
            starts.append(size)
        return np.array(starts, dtype=np.int64), lines


def with_partners(files: Sequence[FileEntry], targets: Sequence[FileEntry], where: str) -> list[FileEntry]:
    """The files with fingerprints of both of each pair; raises UserError unless each has a partner, or for compressed
    ones."""
    packed = next((file.path for file in files if is_compressed(file.path)), None)
    if packed is not None:
        raise UserError(f"{where}.paths: {packed} is compressed, but parallel files are read plain; unpack it")
    if len(files) != len(targets):
        raise UserError(
            f"{where}.paths has {len(files)} files, but {where}.target_paths has {len(targets)}; name a file of targets"
            f" for each, in the same order"
        )
    return [
        file._replace(fingerprint=xxhash.xxh64_hexdigest((file.fingerprint + target.fingerprint).encode()))
        for file, target in zip(files, targets, strict=True)
    ]
