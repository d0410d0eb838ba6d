"""From parsed records to a block of texts: the same rules for every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.base.encodings import UTF8
from data_pipeline.sources.fields import Fields, TextField
from data_pipeline.sources.readers.bad_records import EMPTY, FILLED, REPAIRED, BadRecords
from data_pipeline.sources.readers.base import Block

Note = Callable[[int, str, str], None]
"""Takes position, reason and detail of a bad record."""

NO_TEXT = "no text in the field"
TOO_LONG = "too long"


class Extractor:
    """Takes the texts out of records; bad ones are noted, empty ones counted."""

    def __init__(self, fields: Fields, bad: BadRecords, max_bytes: int) -> None:
        """`max_bytes`: a text of more bytes in UTF-8 is a bad record."""
        self.fields = fields
        self.bad = bad
        self.max_bytes = max_bytes

    def columns(
        self, positions: Sequence[int], columns: Mapping[str, Sequence[Any]], note: Note, next_position: int | None
    ) -> Block:
        """A block of records that are given by column; one that all of them lack may be left out."""
        self.bad.records_read += len(positions)
        columns = {name: columns.get(name) or [None] * len(positions) for name in self.fields.names}
        filled = any(value is None for name in self.fields.defaults for value in columns[name])
        if self.fields.layout is not None:
            return self._by_row(positions, columns, note, next_position)
        texts, targets = ([self._column(field, columns) for field in self.fields.both] + [None])[:2]
        if (
            not self.fields.others
            and not filled
            and all(self.usable(column) for column in (texts, targets) if column is not None)
        ):
            return Block(list(texts or ()), positions, next_position, targets)  # type: ignore[arg-type]
        return self._by_row(positions, columns, note, next_position)

    def _by_row(
        self, positions: Sequence[int], columns: Mapping[str, Sequence[Any]], note: Note, next_position: int | None
    ) -> Block:
        rows = zip(*(columns[name] for name in self.fields.names), strict=True)
        records = (dict(zip(self.fields.names, row, strict=True)) for row in rows)
        return self._one_by_one(positions, records, note, next_position)

    def records(self, positions: Iterable[int], records: Iterable[Any], note: Note, next_position: int | None) -> Block:
        """A block of records, whatever they are: only objects with strings in the right fields are kept."""
        return self._one_by_one(positions, records, note, next_position)

    def _column(self, field: TextField, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        if field.template is None:
            return columns[field.names[0]]
        rows = zip(*(columns[name] for name in field.names), strict=True)
        return [field.text(dict(zip(field.names, row, strict=True))) for row in rows]

    def usable(self, texts: Sequence[Any]) -> bool:
        """Whether all are strings, none is empty or blank, and for certain none too long."""
        return usable(texts, self.max_bytes)

    def _one_by_one(
        self, positions: Iterable[int], records: Iterable[Any], note: Note, next_position: int | None
    ) -> Block:
        kept: list[int] = []
        values: list[dict[str, Any]] = []
        others = self.fields.others
        both: list[list[str]] = [[] for _ in self.fields.both]
        layout = self.fields.layout
        for position, raw in zip(positions, records, strict=True):
            record = raw if layout is None or not isinstance(raw, dict) else layout.convert(raw)
            texts = [self._text(position, field, record, note) for field in self.fields.both[:1]]
            # A pair that lacks both texts is one bad record.
            if texts != [None]:
                texts += [self._text(position, field, record, note) for field in self.fields.both[1:]]
            if None in texts:
                continue
            if not all(text and not text.isspace() for text in texts if text is not None):
                self.bad.dropped[EMPTY] += 1
                continue
            if self.fields.uses_default(raw):
                self.bad.dropped[FILLED] += 1
            kept.append(position)
            if others:
                values.append({called: record.get(name) for called, name in others.items()})
            for column, text in zip(both, texts, strict=True):
                column.append(text or "")
        targets = both[1] if len(both) == 2 else None
        return Block(both[0], kept, next_position, targets, values if others else None)

    def _text(self, position: int, field: TextField, record: Any, note: Note) -> str | None:
        text = field.text(record) if isinstance(record, dict) else None
        if text is None:
            note(position, NO_TEXT, field.problem(record))
        elif is_too_long(text, position, self.max_bytes, note):
            return None
        return text


def usable(texts: Sequence[Any], max_bytes: int) -> bool:
    """Whether all are strings, none is empty or blank, and none may have more bytes in UTF-8."""
    try:
        return all(texts) and not any(map(str.isspace, texts)) and 4 * max(map(len, texts), default=0) <= max_bytes
    except TypeError:
        return False


def is_too_long(text: str, position: int, max_bytes: int, note: Note) -> bool:
    """Whether a text has more bytes in UTF-8, which is noted."""
    if 4 * len(text) <= max_bytes or len(text.encode(errors="surrogatepass")) <= max_bytes:
        return False
    note(position, TOO_LONG, f"more than data.max_document_bytes ({max_bytes})")
    return True


def decode(data: bytes, position: int, note: Note, encoding: str = UTF8) -> str:
    """Text of an encoding; invalid bytes become U+FFFD, which is noted."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        note(position, REPAIRED, str(error).partition(": ")[2] or str(error))
        return data.decode(encoding, errors="replace")
