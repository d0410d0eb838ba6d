"""Surveys of sources, and what reads them."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

import numpy as np

from data_pipeline.base.encodings import UTF8, cuts_at_newlines, later_bytes
from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry, is_remote, list_files
from data_pipeline.sources.hub import DatasetReader, StreamedDataset
from data_pipeline.sources.readers.bad_records import BadRecord, BadRecords, LineNumbers
from data_pipeline.sources.readers.base import Reader, Span
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.looking import Look
from data_pipeline.sources.readers.openers import ReadSettings, opened
from data_pipeline.sources.readers.openers.opener import target_files
from data_pipeline.sources.readers.parallel import with_partners
from data_pipeline.sources.readers.storage import ByteSources, Files

_UNREAD_SUFFIXES = (".bz2", ".xz", ".zip", ".tar", ".lz4", ".7z")


class Survey(NamedTuple):
    """What was found out about a source by looking at its files, so that others need not look.

    Thousands of ranks that walked the folders and read the ends, headers and footers of all files would be a burden on
    a shared file system.
    """

    files: list[FileEntry]
    spans: np.ndarray
    """int64 (spans, 4): those of `OpenSource`; none of a streamed data set, whose library finds its shards."""


class OpenSource(NamedTuple):
    """A source that can be read."""

    files: list[FileEntry]
    spans: list[Span]
    """Their `file` is the number among `files`."""
    reader: Reader


def survey_source(source: SourceConfig, index: int, where: str, settings: ReadSettings, bad: BadRecords) -> Survey:
    """Lists, fingerprints and cuts the files of a source.

    Args:
        source: what to read.
        index: its number among the sources.
        where: its place in the config, for messages.
        settings: how to cut it.
        bad: gets the records that cannot be used.

    Raises:
        UserError: no file, an unreadable one, a missing field, or settings that do not fit together.
    """
    _require_fitting(source, where)
    streamed = source.about.is_streamed
    look = Look(source, where, settings.pages)
    files = [] if streamed and not source.paths else list_files(source, index, where, look)
    if source.target_paths:
        files = with_partners(files, target_files(source, where, look), where)
    spans: list[Span] = []
    if not streamed:
        for file in files:
            if file.path.endswith(_UNREAD_SUFFIXES):
                raise UserError(f"{where}.paths: {file.path} is compressed in a way that is not read; use .gz or .zst")
        extractor = Extractor(Fields(source, where), bad, settings.max_document_bytes)
        find_spans, reader = opened(source, files, settings, extractor)
        with contextlib.closing(reader):
            spans = find_spans()
    return Survey(files, np.array(spans, dtype=np.int64).reshape(-1, 4))


def open_source(
    source: SourceConfig, index: int, where: str, settings: ReadSettings, bad: BadRecords, survey: Survey
) -> OpenSource:
    """What reads a source, from a survey of it with the same settings, by this process or another.

    Raises:
        UserError: this machine lacks the files, or a data set cannot be opened.
    """
    _require_here(survey.files, where)
    fields = Fields(source, where)
    extractor = Extractor(fields, bad, settings.max_document_bytes)
    if source.about.is_streamed:
        streamed = StreamedDataset(source, index, where, settings.span_bytes, fields, survey.files)
        return OpenSource(streamed.files, streamed.spans, DatasetReader(extractor, streamed))
    _, reader = opened(source, survey.files, settings, extractor)
    return OpenSource(survey.files, list(map(Span._make, survey.spans.tolist())), reader)


def place_of(source: SourceConfig, file: FileEntry, position: int) -> str:
    """Where the record at a position stands, for people: `path:line`, or the path with its row."""
    if not source.about.is_text:
        return BadRecord("", file.path, None, position, position, "").place
    with contextlib.closing(Files()) as stored:
        line = LineNumbers(ByteSources(stored, source.encoding or UTF8).open(file)).at(position)
    return BadRecord("", file.path, line, None, position, "").place


def _require_here(files: list[FileEntry], where: str) -> None:
    """Refuse files that another machine has and this one has not, or otherwise; looking at one is enough, and cheap."""
    for file in files[:1]:
        if not is_remote(file.path) and not (os.path.isfile(file.path) and os.path.getsize(file.path) == file.size):
            raise UserError(
                f"{where}.paths: {file.path} of {file.size:,} bytes is on rank 0's machine but not on this one; put the"
                f" files where all machines see them under the same path"
            )


def _require_fitting(source: SourceConfig, where: str) -> None:
    if source.about.is_tokenised:
        raise UserError(f"{where} has kind tokens, but text is needed here; name the files that the tokens are from")
    if source.records and not source.about.is_nested:
        raise UserError(
            f"{where}.records is {source.records!r}, but kind is {source.kind}; leave it out, or set kind: json"
        )
    if source.about.is_plain and source.target_field is not None:
        raise UserError(
            f"{where}.target_field is {source.target_field!r}, but kind text has no fields; use jsonl or csv"
        )
    separated = source.about.delimiter is not None or (source.about.is_plain and source.document == "file")
    for name, given in (("defaults", source.defaults), ("fields", source.fields)):
        if source.about.is_plain and given:
            raise UserError(f"{where}.{name} is {given}, but kind text has no fields; leave it out")
    if source.delimiter is not None and not separated:
        what = f"kind {source.kind}" if not source.about.is_plain else "document: line"
        raise UserError(f"{where}.delimiter is {source.delimiter!r}, but {where} has {what}; leave out one of the two")
    _require_encoding(source, where)


def _require_encoding(source: SourceConfig, where: str) -> None:
    """Refuse an encoding of what is no text, one that lacks a character that tells fields or documents apart, or one in
    which a delimiter of documents, which are cut before they are decoded, may be part of other characters."""
    encoding = source.encoding
    if encoding is None:
        return
    if not source.about.is_text:
        raise UserError(
            f"{where}.encoding is {encoding}, but kind {source.kind} has no encoding of its own; leave it out"
        )
    special = {"delimiter": source.delimiter}
    if source.about.delimiter is not None:
        special |= {"quote": source.quote, "escape": source.escape}
    for name, characters in special.items():
        try:
            (characters or "").encode(encoding)
        except UnicodeEncodeError:
            raise UserError(
                f"{where}.{name} is {characters!r}, which {encoding} has no bytes for; correct one of the two"
            ) from None
    if source.delimiter is None or source.about.delimiter is not None:
        return
    if encoding == UTF8 or not cuts_at_newlines(encoding):
        return
    if source.delimiter.encode(encoding)[0] in later_bytes(encoding):
        raise UserError(
            f"{where}.delimiter is {source.delimiter!r}, whose first byte is part of other characters in {encoding} as"
            f" well; convert the files to UTF-8, or use another delimiter"
        )
