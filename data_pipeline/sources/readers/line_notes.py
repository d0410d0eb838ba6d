"""Bad records of files of lines, noted with the number of their line."""

from __future__ import annotations

from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.bad_records import BadRecords, LineNumbers
from data_pipeline.sources.readers.base import RecentlyUsed
from data_pipeline.sources.readers.extract import Note
from data_pipeline.sources.readers.storage import ByteSources

_COUNTERS = 16


class LineNotes:
    """What notes bad records, by file; the counts of lines of few files are kept."""

    def __init__(self, sources: ByteSources, bad: BadRecords) -> None:
        self._sources = sources
        self._bad = bad
        self._numbers: RecentlyUsed[str, LineNumbers] = RecentlyUsed(_COUNTERS)

    def numbers(self, file: FileEntry) -> LineNumbers:
        """Counts the lines of a file."""
        return self._numbers.get(file.path) or self._numbers.put(file.path, LineNumbers(self._sources.open(file)))

    def of(self, file: FileEntry) -> Note:
        """What notes the bad records of a file."""

        def note(position: int, reason: str, detail: str) -> None:
            self._bad.note(reason, file.path, position, detail, lines=self.numbers(file))

        return note

    def close(self) -> None:
        """Forget the counts."""
        self._numbers.close()
