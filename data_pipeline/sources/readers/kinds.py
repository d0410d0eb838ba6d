"""The reader and the spans of each kind of source."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline.base.encodings import UTF8, cuts_at_newlines, later_bytes
from data_pipeline.base.errors import UserError
from data_pipeline.config import DELIMITERS, SourceConfig
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry, is_remote, list_files
from data_pipeline.sources.hub import DatasetReader, StreamedDataset
from data_pipeline.sources.readers.arrow import ArrowReader, arrow_spans
from data_pipeline.sources.readers.bad_records import BadRecord, BadRecords, LineNumbers
from data_pipeline.sources.readers.base import Reader, Span
from data_pipeline.sources.readers.delimited import DelimitedReader
from data_pipeline.sources.readers.dialect import Dialect
from data_pipeline.sources.readers.extract import Extractor
from data_pipeline.sources.readers.headerless import HeaderlessReader
from data_pipeline.sources.readers.json_layout import require_json_lines
from data_pipeline.sources.readers.looking import TEXT_KINDS, Look
from data_pipeline.sources.readers.parallel import ParallelReader, with_partners
from data_pipeline.sources.readers.parquet import ParquetReader, parquet_spans
from data_pipeline.sources.readers.parsed import ParsedReader, conll_parser, json_parser
from data_pipeline.sources.readers.separated import JsonParser, SeparatedReader, TextParser, byte_spans
from data_pipeline.sources.readers.storage import ByteSources, Files, is_compressed
from data_pipeline.sources.readers.whole_files import FileReader, file_spans

SMALLEST_SPAN = 1 << 12
"""Bytes below which a small source is not cut for the sake of many lanes."""
_UNREAD_SUFFIXES = (".bz2", ".xz", ".zip", ".tar", ".lz4", ".7z")


class ReadSettings(NamedTuple):
    """How sources are cut and what is done about bad records."""

    span_bytes: int
    """Largest span of a line-oriented file."""
    lanes: int | None
    """Lanes that the spans are dealt to; None where they are not dealt."""
    max_document_bytes: int
    """A longer document is a bad record."""
    pages: bool = False
    """Whether web pages are to be read, since a cleaning step takes the text out of them."""


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


def target_files(source: SourceConfig, where: str, look: Callable[..., None] = lambda *shown: None) -> list[FileEntry]:
    """The files of targets of parallel ones. Raises UserError as `list_files`."""
    partners = source.model_copy(update={"paths": source.target_paths, "exclude": []})
    files = list_files(partners, 0, where, look)
    packed = next((file.path for file in files if is_compressed(file.path)), None)
    if packed is not None:
        raise UserError(f"{where}.target_paths: {packed} is compressed, but parallel files are read plain; unpack it")
    return files


def is_whole_file(source: SourceConfig) -> bool:
    """Whether each file is one document."""
    return source.kind == "text" and source.document == "file" and source.delimiter is None


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
    streamed = source.kind == "datasets"
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
        find_spans, reader = _KINDS[source.kind](source, files, settings, extractor)
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
    if source.kind == "datasets":
        streamed = StreamedDataset(source, index, where, settings.span_bytes, fields, survey.files)
        return OpenSource(streamed.files, streamed.spans, DatasetReader(extractor, streamed))
    _, reader = _KINDS[source.kind](source, survey.files, settings, extractor)
    return OpenSource(survey.files, list(map(Span._make, survey.spans.tolist())), reader)


def place_of(source: SourceConfig, file: FileEntry, position: int) -> str:
    """Where the record at a position stands, for people: `path:line`, or the path with its row."""
    if source.kind not in TEXT_KINDS:
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
    if source.kind == "tokens":
        raise UserError(f"{where} has kind tokens, but text is needed here; name the files that the tokens are from")
    if source.records and source.kind != "json":
        raise UserError(
            f"{where}.records is {source.records!r}, but kind is {source.kind}; leave it out, or set kind: json"
        )
    if source.kind == "text" and source.target_field is not None:
        raise UserError(
            f"{where}.target_field is {source.target_field!r}, but kind text has no fields; use jsonl or csv"
        )
    separated = source.kind in DELIMITERS or (source.kind == "text" and source.document == "file")
    for name, given in (("defaults", source.defaults), ("fields", source.fields)):
        if source.kind == "text" and given:
            raise UserError(f"{where}.{name} is {given}, but kind text has no fields; leave it out")
    if source.delimiter is not None and not separated:
        what = f"kind {source.kind}" if source.kind != "text" else "document: line"
        raise UserError(f"{where}.delimiter is {source.delimiter!r}, but {where} has {what}; leave out one of the two")
    _require_encoding(source, where)


def _require_encoding(source: SourceConfig, where: str) -> None:
    """Refuse an encoding of what is no text, one that lacks a character that tells fields or documents apart, or one in
    which a delimiter of documents, which are cut before they are decoded, may be part of other characters."""
    encoding = source.encoding
    if encoding is None:
        return
    if source.kind not in TEXT_KINDS:
        raise UserError(
            f"{where}.encoding is {encoding}, but kind {source.kind} has no encoding of its own; leave it out"
        )
    special = {"delimiter": source.delimiter}
    if source.kind in DELIMITERS:
        special |= {"quote": source.quote, "escape": source.escape}
    for name, characters in special.items():
        try:
            (characters or "").encode(encoding)
        except UnicodeEncodeError:
            raise UserError(
                f"{where}.{name} is {characters!r}, which {encoding} has no bytes for; correct one of the two"
            ) from None
    if source.delimiter is None or source.kind in DELIMITERS or encoding == UTF8 or not cuts_at_newlines(encoding):
        return
    if source.delimiter.encode(encoding)[0] in later_bytes(encoding):
        raise UserError(
            f"{where}.delimiter is {source.delimiter!r}, whose first byte is part of other characters in {encoding} as"
            f" well; convert the files to UTF-8, or use another delimiter"
        )


_Opened = tuple[Callable[[], list[Span]], Reader]
"""What finds the spans, by reading of the files what it must, and the reader."""


def _text(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    bad, limit = extractor.bad, settings.max_document_bytes
    encoding = source.encoding or UTF8
    if is_whole_file(source):
        return lambda: file_spans(files, limit), FileReader(Files(), bad, limit, encoding)
    sources = ByteSources(Files(), encoding)
    if source.target_paths:
        targets = target_files(source, "data.sources")
        pairs = ParallelReader(sources, files, targets, extractor)
        return lambda: pairs.spans(files, _span_limit(files, settings)), pairs
    parser = TextParser(bad, settings.max_document_bytes, lines=source.delimiter is None)
    reader = SeparatedReader(sources, source.delimiter or "\n", parser, bad, limit)
    return lambda: byte_spans(sources, files, _span_limit(files, settings)), reader


def _jsonl(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    sources = ByteSources(Files(), source.encoding or UTF8)

    def spans() -> list[Span]:
        for file in files:
            require_json_lines(sources, file, extractor.fields, settings.max_document_bytes)
        return byte_spans(sources, files, _span_limit(files, settings))

    return spans, SeparatedReader(sources, "\n", JsonParser(extractor), extractor.bad, settings.max_document_bytes)


def _delimited(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    delimiter = source.delimiter or DELIMITERS[source.kind]
    asked = "quote" in source.model_fields_set
    guessed = not (source.quote or asked or source.columns)
    dialect = Dialect(delimiter, source.quote, source.escape or "", guessed=guessed)
    sources = ByteSources(Files(), source.encoding or UTF8)
    given = (sources, dialect, extractor, extractor.bad)
    reader = HeaderlessReader(*given, source.columns) if source.columns else DelimitedReader(*given)
    return lambda: reader.spans(files, _span_limit(files, settings)), reader


def _parquet(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    stored = Files()

    def spans() -> list[Span]:
        return [span for i, file in enumerate(files) for span in parquet_spans(stored, file, i, extractor.fields)]

    return spans, ParquetReader(stored, extractor, extractor.bad)


def _arrow(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    stored = Files()

    def spans() -> list[Span]:
        return [span for i, file in enumerate(files) for span in arrow_spans(stored, file, i, extractor.fields)]

    return spans, ArrowReader(stored, extractor, extractor.bad)


def _conll(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    sources = ByteSources(Files(), source.encoding or UTF8)
    reader = ParsedReader(sources, conll_parser(sources.encoding), extractor, lines=True)
    return lambda: reader.spans(files, _span_limit(files, settings)), reader


def _json(source: SourceConfig, files: list[FileEntry], settings: ReadSettings, extractor: Extractor) -> _Opened:
    reader = ParsedReader(ByteSources(Files()), json_parser(source.records), extractor, lines=False)
    return lambda: reader.spans(files, _span_limit(files, settings)), reader


def _span_limit(files: list[FileEntry], settings: ReadSettings) -> int:
    """A small source is cut into about four spans a lane."""
    if settings.lanes is None:
        return settings.span_bytes
    fair = -(-sum(file.size for file in files) // (4 * settings.lanes))
    return min(settings.span_bytes, max(SMALLEST_SPAN, fair))


_KINDS: dict[str, Callable[[SourceConfig, list[FileEntry], ReadSettings, Extractor], _Opened]] = {
    "text": _text,
    "jsonl": _jsonl,
    "csv": _delimited,
    "tsv": _delimited,
    "parquet": _parquet,
    "arrow": _arrow,
    "conll": _conll,
    "json": _json,
}
