"""Whole records of files, for what takes more of them than a text: evaluation's items.

The same readers as for documents, which here give each record as JSON. A record that cannot be used is refused and
never left out: a score would be of other items then.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from data_pipeline.base.durable import parse_json, read_file
from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import list_files
from data_pipeline.sources.readers.bad_records import BadRecords, LineNumbers
from data_pipeline.sources.readers.base import Block
from data_pipeline.sources.readers.extract import Extractor, Note
from data_pipeline.sources.readers.openers import ReadSettings, opened
from data_pipeline.sources.readers.parsed import descend

LONGEST = 1 << 28
"""Most bytes of a record."""
_WHOLE = ReadSettings(span_bytes=1 << 30, lanes=None, max_document_bytes=LONGEST)


class SourceRecord(NamedTuple):
    """A record and where it is from."""

    fields: dict[str, Any]
    path: str
    number: int
    """Its place among the records of its file, from 1."""


class _Names(Fields):
    """The fields that are needed, instead of those that hold texts."""

    def __init__(self, needed: Iterable[str], wanted: Iterable[str], where: str) -> None:
        """`needed`: must be there; `wanted`: are taken where they are."""
        self.layout = None
        self.both = []
        self.defaults = {}
        self.others = {}
        self._needed = list(needed)
        self.names = list(dict.fromkeys([*self._needed, *wanted]))
        self._where = where

    def require(self, present: Iterable[str], path: str) -> None:
        known = list(present)
        for name in self._needed:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else "name one of them, or give other data"
                raise UserError(
                    f"{self._where}: {path} has no field {name!r} but {', '.join(map(repr, known)) or 'none'}; {hint}"
                )
        for name in self.names:
            if known.count(name) > 1:
                raise UserError(f"{self._where}: {path} has {known.count(name)} fields {name!r}; rename all but one")


class _WholeRecords(Extractor):
    """Gives each record as JSON, in place of its text."""

    def columns(
        self, positions: Sequence[int], columns: Mapping[str, Sequence[Any]], note: Note, next_position: int | None
    ) -> Block:
        rows = zip(*columns.values(), strict=True) if columns else iter([()] * len(positions))
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        return self.records(positions, records, note, next_position)

    def records(self, positions: Iterable[int], records: Iterable[Any], note: Note, next_position: int | None) -> Block:
        texts, places = [], list(positions)
        for position, record in zip(places, records, strict=True):
            if not isinstance(record, dict):
                note(position, "no record", f"it is {type(record).__name__}, not an object")
            texts.append(orjson.dumps(record, default=str).decode())
        return Block(texts, places, next_position)


class _Refused(BadRecords):
    """Refuses every bad record with its place."""

    def __init__(self, where: str) -> None:
        super().__init__(Counter(), "fail")
        self._where = where

    def note(
        self,
        reason: str,
        path: str,
        position: int,
        detail: str = "",
        *,
        lines: LineNumbers | None = None,
        row: int | None = None,
    ) -> None:
        line = lines.at(position) if lines is not None else None
        place = f"{path}:{line}" if line is not None else f"{path} (row {row})" if row is not None else path
        more = f" ({detail})" if detail else ""
        raise UserError(f"{self._where}: {place}: {reason}{more}; repair the file")


def read_records(
    source: SourceConfig,
    where: str,
    needed: Iterable[str],
    wanted: Iterable[str] = (),
    *,
    columns: Sequence[str] = (),
    nested: str | None = None,
) -> Iterator[SourceRecord]:
    """The records of files, in the order of the files' names.

    Args:
        source: paths, kind and how the files are written; kinds text and datasets have no records.
        where: what messages call it.
        needed: fields that every table must have.
        wanted: fields to take where they are. Rows of tables hold these and the needed ones, other records all.
        columns: for csv and tsv, the names of the columns of files without a header row.
        nested: for JSON that is one value and not lines, the path of lists to the records, such as
            `data.paragraphs.qas`; each has the fields of those above it, too. "" for a list of records.

    Raises:
        UserError: there is no file, one cannot be read, lacks a field, or a record cannot be used.
    """
    files = list_files(source, 0, where)
    if nested is not None:
        for file in files:
            yield from _nested(file.path, nested, where)
        return
    # Of tables, columns are known before a record is read; elsewhere the task reports a record without the field.
    is_table = source.about.delimiter is not None or source.about.format is not None
    names = _Names(needed if is_table else (), [*needed, *wanted], where)
    extractor = _WholeRecords(names, _Refused(where), LONGEST)
    if source.about.is_streamed or not source.about.has_fields:
        raise UserError(f"{where}: files of kind {source.kind} have no records; use jsonl, csv, tsv, parquet or arrow")
    source = source.model_copy(update={"columns": list(columns)})
    for file in files:
        spans, reader = opened(source, [file], _WHOLE, extractor)
        number = 0
        for span in spans():
            position: int | None = span.start
            while position is not None:
                block = reader.read(file, span, position)
                for text in block.texts:
                    number += 1
                    yield SourceRecord(orjson.loads(text), file.path, number)
                position = block.next_position
        reader.close()


def _nested(path: str, levels: str, where: str) -> Iterator[SourceRecord]:
    try:
        value = parse_json(read_file(path))
    except OSError as error:
        raise UserError(f"{where}: cannot read {path}: {error.strerror}; make it readable") from None
    except ValueError as error:
        raise UserError(f"{where}: {path} is no JSON: {error}; repair the file") from None
    names = levels.split(".") if levels else []
    try:
        for number, record in enumerate(descend(value, names, {}), start=1):
            yield SourceRecord(record, path, number)
    except ValueError as error:
        raise UserError(f"{where}: {path}: {error}") from None
