"""The documents of a config: its files cut into spans, the held-out split, and reading from any position."""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from data_pipeline.base.encodings import UTF8
from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import CleaningStep
from data_pipeline.cleaning.pipeline import build_cleaner
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.document import Document
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers import ENDLESS, BadCounts, BadRecord, BadRecords, Reader, Span, nothing_kept
from data_pipeline.sources.readers.kinds import (
    ReadSettings,
    Survey,
    open_source,
    place_of,
    survey_source,
)

PROBED_BLOCKS = 1 << 10
"""Most blocks of a source (64 KiB of text each, or a file) that are read at the start in search of a document."""
LISTED_FILES = 1 << 16
"""Most files whose fingerprints a cursor carries; beyond that it carries only the digest of them all."""


def survey_sources(config: DataConfig) -> list[Survey]:
    """What a corpus of `config.sources` finds out about their files, so that other processes need not look.

    Raises:
        UserError: as `Corpus`, and where sources are tokenised already.
    """
    return Corpus.training(config).surveys


class Corpus:
    """The spans of some sources. Reading keeps files open and counts drops, so each process makes its own."""

    def __init__(
        self,
        sources: list[SourceConfig],
        *,
        span_bytes: int = 1 << 20,
        holdout: float = 0.0,
        where: str = "data.sources",
        cleaning: Sequence[CleaningStep] = (),
        lanes: int | None = None,
        max_document_bytes: int = 1 << 26,
        on_bad_record: str = "skip",
        surveys: Sequence[Survey] | None = None,
    ) -> None:
        """Lists and fingerprints all files, unless that has been done.

        Args:
            sources: what to read.
            span_bytes: largest span of a line-oriented file, in bytes.
            holdout: fraction of documents set aside.
            where: the sources' place in the config, for messages.
            cleaning: steps that every document goes through; both sides of the split are cleaned.
            lanes: what the spans are dealt to; a small line-oriented source is cut into about four times as many.
            max_document_bytes: a longer record is a bad one.
            on_bad_record: skip or fail.
            surveys: `survey_sources` of a config with the same sources and settings.

        Raises:
            UserError: no file, an unreadable one, a missing field, or a source without a document.
        """
        self.sources = sources
        self.holdout = holdout
        self.span_bytes = span_bytes
        self.dropped: Counter[str] = Counter()
        """Documents dropped or repaired while reading, by reason; what is read twice counts twice."""
        self._bad = BadRecords(self.dropped, on_bad_record)
        pages = any(step.step == "html" for step in cleaning)
        self._settings = ReadSettings(span_bytes, lanes, max_document_bytes, pages)
        self._cleaning = [step.model_dump_json() for step in cleaning]
        self._clean = build_cleaner(cleaning, self.dropped)
        self.files: list[FileEntry] = []
        self.spans: list[Span] = []
        self._readers: list[Reader] = []
        self._first_spans = [0]
        self.surveys: list[Survey] = []
        """What was found out about each source."""
        for index, source in enumerate(sources):
            place = f"{where}[{index}]"
            survey = surveys[index] if surveys else survey_source(source, index, place, self._settings, self._bad)
            self.surveys.append(survey)
            self._add(source, index, place, survey)
        if not surveys:
            for index in range(len(sources)):
                self._require_text(index, f"{where}[{index}]")
        self.digest = self._digest()
        """SHA-256 of everything that decides which documents there are."""

    @classmethod
    def training(cls, config: DataConfig, surveys: Sequence[Survey] | None = None) -> Corpus:
        """The corpus of `config.sources`, held-out documents set aside; `surveys` as for `Corpus`."""
        return cls(
            config.sources,
            span_bytes=config.span_bytes,
            holdout=config.holdout,
            cleaning=config.cleaning,
            lanes=config.lanes,
            max_document_bytes=config.max_document_bytes,
            on_bad_record=config.on_bad_record,
            surveys=surveys,
        )

    def _add(self, source: SourceConfig, index: int, where: str, survey: Survey) -> None:
        first = len(self.files)
        files, spans, reader = open_source(source, index, where, self._settings, self._bad, survey)
        self.files += files
        self.spans += [Span(span.file + first, *span[1:]) for span in spans] if first else spans
        self._first_spans.append(len(self.spans))
        self._readers.append(reader)

    def _require_text(self, index: int, where: str) -> None:
        """Read a source until there is a document; raises UserError, which says why, where it holds none at all."""
        policy, self._bad.fail = self._bad.fail, False
        try:
            reads = 0
            for span in self.spans[self._first_spans[index] : self._first_spans[index + 1]]:
                position: int | None = span.start
                while position is not None:
                    documents, position = self.read(span, position, held_out=None)
                    reads += 1
                    if documents or reads == PROBED_BLOCKS:
                        return
            files = [file.path for file in self.files if file.source == index]
            raise UserError(f"{where} holds no text: {nothing_kept(files, self._bad, where)}")
        finally:
            self._bad.fail = policy
            self._bad.forget()
            # Nobody expects open files of a corpus that was not read yet: it may be copied to a process.
            self._readers[index].close()

    def read(self, span: Span, position: int, *, held_out: bool | None = False) -> tuple[list[Document], int | None]:
        """A block of documents of a span, and the position of the next block (None at the end).

        Starts with the first document at or after `position`, whatever that is. `held_out` chooses the side of the
        split; None reads both (see `is_held_out`). Raises UserError where the file cannot be read.
        """
        file = self.files[span.file]
        block = self._readers[file.source].read(file, span, position)
        none = itertools.repeat(None)
        positions, texts, targets, values = block.positions, block.texts, block.targets or none, block.values or none
        ids = _ids(span.file, file, positions)
        rows = zip(ids, itertools.repeat(span.file), positions, texts, targets, values, none)
        documents: Iterable[Document] = map(_document, rows)
        if held_out is not None and (self.holdout or held_out):
            documents = (document for document in documents if self.is_held_out(document) == held_out)
        return list(self._clean(documents)), block.next_position

    def place(self, document: Document) -> str:
        """Where a document stands, for people: `path:line`, or the path with its row."""
        file = self.files[document.file]
        return place_of(self.sources[file.source], file, document.position)

    @property
    def bad(self) -> list[BadRecord]:
        """Records left out or repaired since the last `take_bad`, at most 1,000; `dropped` counts all of them."""
        return self._bad.noted

    def take_bad(self) -> list[BadRecord]:
        """`bad`, which is empty afterwards."""
        return self._bad.take()

    def take_counts(self) -> BadCounts:
        """What was wrong with the records that were read since the last call; what is read twice counts twice."""
        return self._bad.take_counts()

    @property
    def bad_count(self) -> int:
        """Bad records met so far, noted or not; what is read twice counts twice."""
        return self._bad.count

    @property
    def records_read(self) -> int:
        """Records read so far, good and bad ones; what is read twice counts twice."""
        return self._bad.records_read

    def can_enter(self, span: Span) -> bool:
        """Whether any position of a span costs about the same to read from, and lies between its start and stop."""
        return span.stop != ENDLESS

    def source_bytes(self) -> list[int]:
        """Bytes of each source, as its spans weigh."""
        sizes = [0] * len(self.sources)
        for span in self.spans:
            sizes[self.files[span.file].source] += span.size
        return sizes

    def side(self, held_out: bool) -> list[Span]:
        """The spans that can hold documents of one side of the held-out split."""
        return [
            span
            for span in self.spans
            if not self._is_whole_file(self.files[span.file]) or self._held_out(self.files[span.file].name) == held_out
        ]

    def documents(self, *, held_out: bool = False) -> Iterator[Document]:
        """All documents of one side, file by file."""
        for span in self.side(held_out):
            position: int | None = span.start
            while position is not None:
                documents, position = self.read(span, position, held_out=held_out)
                yield from documents

    def texts(self, *, held_out: bool = False) -> Iterator[list[str]]:
        """The texts of all documents of one side, file by file and some at a time: faster than `documents`, since
        ids and positions are not worked out."""
        for span in self.side(held_out):
            position: int | None = span.start
            while position is not None:
                if self.holdout or held_out or self._cleaning:
                    documents, position = self.read(span, position, held_out=held_out)
                    yield [document.text for document in documents]
                else:
                    file = self.files[span.file]
                    block = self._readers[file.source].read(file, span, position)
                    position = block.next_position
                    yield block.texts

    def is_held_out(self, document: Document) -> bool:
        """Which side of the split a document is on."""
        file = self.files[document.file]
        return self._held_out(file.name if self._is_whole_file(file) else f"{file.name}:{document.position}")

    def read_as(self, version: int) -> None:
        """Take records as a version of the reading did (see `BadRecords.version`), for a run that began with it."""
        self._bad.version = version

    def close(self) -> None:
        """Close all files; reading opens them again. Call it before a fork, since a child would share their offsets."""
        for reader in self._readers:
            reader.close()

    def fingerprints(self) -> str:
        """Eight hexadecimal digits a file, for `check`; empty for very many files."""
        if len(self.files) > LISTED_FILES:
            return ""
        return "".join(file.fingerprint[:8] for file in self.files)

    def check(self, recorded: dict[str, Any]) -> None:
        """Refuse a cursor (`source`, `files`) that was written for other files.

        Raises:
            UserError: names the first file that differs.
        """
        if recorded["source"] == self.digest:
            return
        old = [recorded["files"][i : i + 8] for i in range(0, len(recorded["files"]), 8)]
        fix = "restore what the run was saved with, or start a new run"
        difference = self._difference(old) if old else None
        if difference is not None:
            raise UserError(f"{difference}; {fix}")
        raise UserError(
            f"the files of data.sources changed since the run was saved (digest {recorded['source'][:12]},"
            f" now {self.digest[:12]}); {fix}"
        )

    def _difference(self, old: list[str]) -> str | None:
        """How the files differ from those with these fingerprints, of which nothing else is known; None if they do not.

        A fingerprint is of name and contents, so a file that changed is like another that came in its place.
        """
        new = [file.fingerprint[:8] for file in self.files]
        first = next((i for i, (then, now) in enumerate(itertools.zip_longest(old, new)) if then != now), None)
        if first is None:
            return None
        known = set(old)
        if Counter(old) == Counter(new):
            path = self.files[first].path
            return f"the files of data.sources stand in another order than when the run was saved, from {path} on"
        if len(old) == len(new):
            path = self.files[next((i for i, found in enumerate(new) if found not in known), first)].path
            return f"{path} changed since the run was saved; it has other contents or another name, or is another file"
        counts = f"data.sources has {len(new)} files, but had {len(old)} when the run was saved"
        if first == len(new):
            return f"{counts}, of which those behind {self.files[-1].path} are missing"
        begins = f"{counts}; the difference begins at {self.files[first].path}"
        if new[first] not in known:
            return f"{begins}, which was not among them as it is now"
        return f"{begins}, before which a file is missing" if old[first] not in new else begins

    def _is_whole_file(self, file: FileEntry) -> bool:
        return self.sources[file.source].whole_files

    def _held_out(self, key: str) -> bool:
        return self.holdout > 0 and _hash(key) < self.holdout * 2**64

    def _digest(self) -> str:
        state = hashlib.sha256(repr((self.holdout, self.sources_key())).encode())
        for step in self._cleaning:
            state.update(step.encode())
        for file in self.files:
            state.update(file.fingerprint.encode())
        state.update(np.array(self.spans, dtype="<i8").tobytes())
        return state.hexdigest()

    def sources_key(self) -> list[tuple[str | int | None, ...]]:
        """What of the source settings decides documents, besides the files."""
        limit = self._settings.max_document_bytes
        return [
            (
                *(source.kind, source.document, source.delimiter, source.quote, source.field, source.target_field),
                limit,
                # Settings that came later count where they are used, so that earlier runs keep their digest; UTF-8 is
                # what all text was before there was a choice.
                *([source.encoding] if source.encoding not in (None, UTF8) else []),
                *([f"escape {source.escape}"] if source.escape is not None else []),
                *([f"join {source.join}"] if source.join is not None else []),
                *([f"records {source.records}"] if source.records else []),
                *(f"default {item}" for item in sorted(source.defaults.items())),
                *(f"field {item}" for item in sorted(source.fields.items())),
                *([f"layout {source.layout}"] if source.layout is not None else []),
                *([f"columns {source.columns}"] if source.columns else []),
            )
            for source in self.sources
        ]


# A document for each row of its fields, without a Python call: this is the hot path of reading.
_document: Callable[[tuple[Any, ...]], Document] = functools.partial(tuple.__new__, Document)


_EIGHT_BYTES = operator.methodcaller("to_bytes", 8, "little")


def _ids(number: int, file: FileEntry, positions: list[int]) -> Iterator[int]:
    """xxh64 of every position, with that of the file's number and name for its seed."""
    seed = itertools.repeat(_hash(f"{number}\0{file.name}"))
    return map(xxhash.xxh64_intdigest, map(_EIGHT_BYTES, positions), seed)


def _hash(key: str) -> int:
    """xxh64; file names that are not UTF-8 are taken as their bytes."""
    return xxhash.xxh64_intdigest(key.encode(errors="surrogateescape"))
