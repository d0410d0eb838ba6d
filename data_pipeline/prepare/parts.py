"""What `prepare` does with a part of the corpus: consecutive spans, tokenised into files of their own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.base.durable import read_json, replacing, sync_folder, unlinked, write_json
from data_pipeline.base.errors import UserError, writing
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.cache import Counts, tokenized, write_tokenized
from data_pipeline.finite.format import bin_path, idx_path, token_dtype
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives.packing import Stored
from data_pipeline.prepare.deduplication import Signer, without_duplicates
from data_pipeline.prepare.workers import Report
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import Span
from data_pipeline.sources.readers.bad_records import BadRecord
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, document_frame

VERSION = 1
SIDES = ("train", "heldout")
PART_BYTES = 1 << 20
"""Least size of a part: about a second of tokenising, so that little is lost when a process is killed."""
MOST_PARTS = 4096


class Plan(NamedTuple):
    """What is prepared from what, and how it is divided. Depends on neither processes nor ranks."""

    parts: list[list[Span]]
    """Consecutive spans, in the order of the corpus."""
    made_of: dict[str, Any]
    """All that decides the output, in the words of the config."""
    digest: str
    """SHA-256 of `made_of`."""
    pairs: bool
    """Whether documents have targets."""
    frame: Frame | None
    """The special tokens around each document; None: as in a run from scratch."""


def make_plan(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, part_bytes: int = PART_BYTES) -> Plan:
    """Divide a corpus into at most 4,096 parts of `part_bytes` or more.

    Raises:
        UserError: only some of the sources have a `target_field`.
    """
    targets = ["target" in source.gives for source in config.sources]
    if any(targets) and not all(targets):
        number = targets.index(False)
        other = config.sources[targets.index(True)]
        raise UserError(
            f"data.sources[{number}] has no target_field, but data.sources[{targets.index(True)}] has"
            f" {(other.target_field or other.layout or other.target_paths[0])!r}; give one to all sources or to none"
        )
    least = max(part_bytes, sum(span.size for span in corpus.spans) // MOST_PARTS)
    parts: list[list[Span]] = [[]]
    size = 0
    for span in corpus.spans:
        if size >= least:
            parts.append([])
            size = 0
        parts[-1].append(span)
        size += span.size
    made_of = {
        "version": VERSION,
        # Both are in the digest, which names nothing.
        "holdout": config.holdout,
        "cleaning": [step.model_dump(mode="json") for step in config.cleaning],
        "sources": corpus.digest,
        "tokenizer": tokenizer.digest,
        "deduplication": config.deduplication.model_dump(mode="json") if config.deduplication else None,
        "part_bytes": part_bytes,
    }
    frame = None if any(targets) else document_frame(tokenizer)
    if frame is not None and frame.key:
        made_of["frame"] = frame.key
    digest = hashlib.sha256(repr(sorted(made_of.items())).encode()).hexdigest()
    return Plan(parts, made_of, digest, any(targets), frame)


class PartFiles(NamedTuple):
    """The files of one part."""

    folder: Path
    number: int

    def prefix(self, side: str) -> Path:
        """Prefix of the tokens of "train" or "heldout"."""
        return self.folder / f"{side}-{self.number:05d}"

    @property
    def marker(self) -> Path:
        """Says that the part is finished."""
        return self.folder / f"{self.number:05d}.json"

    @property
    def lock(self) -> Path:
        """Is held by whoever publishes the part."""
        return self.folder / f"{self.number:05d}.lock"

    @property
    def signatures(self) -> Path:
        """What deduplication compares: finished when it is there."""
        return self.folder / f"signatures-{self.number:05d}.npy"

    @property
    def duplicates(self) -> Path:
        """What deduplication found."""
        return self.folder / f"duplicates-{self.number:05d}.npy"

    def result(self, digest: str) -> dict[str, Any] | None:
        """The marker's contents; None where the part is not finished for this plan, or its files have changed size."""
        found = read_json(self.marker)
        if not isinstance(found, dict) or found.get("digest") != digest:
            return None
        for name, size in found["files"].items():
            try:
                if os.path.getsize(self.folder / name) != size:
                    return None
            except OSError:
                return None
        return found


class PartWorker:
    """Signs and tokenises parts. Each process makes its own, since readers keep files open."""

    def __init__(self, config: DataConfig, plan: Plan, tokenizer: Tokenizer, folder: Path, corpus: Corpus) -> None:
        self._config = config
        self._plan = plan
        self._folder = folder
        self._corpus = corpus
        self._tokenizer = tokenizer

    def sign(self, number: int, report: Report) -> None:
        """Write the signatures of a part's documents, both sides of the split in one."""
        assert self._config.deduplication is not None
        signatures = Signer(self._config.deduplication).sign(self._documents(number, report, []))
        save_array(PartFiles(self._folder, number).signatures, signatures)

    def tokenize(self, number: int, report: Report) -> None:
        """Write the prefixes of a part, and its marker last; a part that another call has finished stays as it is."""
        files = PartFiles(self._folder, number)
        self._corpus.dropped.clear()
        self._corpus.take_counts()
        bad: list[BadRecord] = []
        documents = self._documents(number, report, bad)
        dropped: Counter[str] = Counter()
        if self._config.deduplication is not None:
            documents = without_duplicates(documents, np.load(files.duplicates), dropped)
        dtype = token_dtype(self._tokenizer.vocab_size)
        writers = {side: IndexedWriter(files.prefix(side), dtype, places=True) for side in self._sides}
        try:
            counts, fruitful = self._fill(writers, documents, report)
            met = self._corpus.take_counts()
            spans = self._plan.parts[number]
            # Other parts may have the rest of the first and the last file.
            asked = {self._corpus.files[span.file].path for span in (spans[:1] + spans[-1:])} | met.by_file.keys()
            marker = {
                "digest": self._plan.digest,
                "counts": counts,
                "dropped": dict(sorted((self._corpus.dropped + dropped).items())),
                "bad": [record._asdict() for record in bad],
                "met": asdict(met),
                "fruitful": sorted(asked & {self._corpus.files[file].path for file in fruitful}),
            }
            # To publish a prefix again takes its index away for a moment, in which another call may join the parts.
            with locked(files.lock):
                if files.result(self._plan.digest) is None:
                    _publish(files, writers, marker)
        finally:
            for writer in writers.values():
                writer.discard()

    @property
    def _sides(self) -> Sequence[str]:
        return SIDES if self._config.holdout > 0 else SIDES[:1]

    def _fill(
        self, writers: dict[str, IndexedWriter], documents: Iterator[Document], report: Report
    ) -> tuple[dict[str, dict[str, Any]], set[int]]:
        """Tokenise into the writers; returns the counts by side and number of the source, and the numbers of the files
        that gave documents."""
        counts: dict[str, dict[str, Counts]] = {side: {} for side in writers}
        fruitful: set[int] = set()
        for batch in tokenized(documents, self._tokenizer, Stored(target=self._plan.pairs), self._plan.frame):
            tokens = 0
            fruitful.update(text.document.file for text in batch)
            held = [self._corpus.is_held_out(text.document) for text in batch]
            for side, writer in writers.items():
                chosen = [text for text, out in zip(batch, held, strict=True) if out == (side == "heldout")]
                if not chosen:
                    continue
                write_tokenized(writer, chosen)
                for text in chosen:
                    source = str(self._corpus.files[text.document.file].source)
                    counts[side].setdefault(source, Counts()).add(text.counts)
                    tokens += text.counts.tokens
            report(0, tokens)
        found = {side: {source: asdict(numbers) for source, numbers in of.items()} for side, of in counts.items()}
        return found, fruitful

    def _documents(self, number: int, report: Report, bad: list[BadRecord]) -> Iterator[Document]:
        """The documents of a part, cleaned, of both sides of the split; `bad` gets the bad records."""
        for span in self._plan.parts[number]:
            position: int | None = span.start
            seen = span.start
            while position is not None:
                documents, position = self._corpus.read(span, position, held_out=None)
                bad += self._corpus.take_bad()
                yield from documents
                now = span.stop if position is None else min(position, span.stop)
                # Rows and examples count by their share of the span's bytes.
                width = max(1, span.stop - span.start)
                report(span.size * (now - span.start) // width - span.size * (seen - span.start) // width, 0)
                seen = now


def _publish(files: PartFiles, writers: dict[str, IndexedWriter], marker: dict[str, Any]) -> None:
    """Give the prefixes of a part their names, and write its marker."""
    for writer in writers.values():
        writer.close()
    paths = [path(files.prefix(side)) for side in writers for path in (bin_path, idx_path)]
    write_json(files.marker, {**marker, "files": {path.name: path.stat().st_size for path in paths}})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, by a file at `path`; the system frees the lock of a killed one."""
    with writing(path), open(path, "a", opener=unlinked) as file:
        # File systems without locks: what follows may then be done twice, with the same result.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, which appears whole or not at all; raises OSError that names it."""
    with replacing(path, durable=True) as file:
        np.save(file, array, allow_pickle=False)
    sync_folder(path.parent)


def total_bytes(plan: Plan, numbers: Sequence[int]) -> int:
    """Size of some parts as their spans weigh."""
    return sum(span.size for span in itertools.chain.from_iterable(plan.parts[number] for number in numbers))
