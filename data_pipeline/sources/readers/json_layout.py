"""Whether a file that is said to hold JSON lines does: one JSON value over many lines is JSON, but no line of it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_pipeline.base.encodings import UTF8, to_utf8
from data_pipeline.base.errors import UserError
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.separated import BOM, json_value
from data_pipeline.sources.readers.storage import ByteSource, ByteSources

HEAD_BYTES = 1 << 20
"""Bytes at a file's start that its layout is judged by."""
_JUDGED_LINES = 32


def require_json_lines(sources: ByteSources, file: FileEntry, fields: Fields, longest: int) -> None:
    """Look whether some line of a file is an object with the fields; it usually is the first.

    Args:
        sources: give the file's bytes.
        file: any; one without a line that is JSON is passed, since whoever reads it finds that.
        fields: what each object needs.
        longest: bytes to go through in search of a record with the fields.

    Raises:
        UserError: the file is one JSON value, or has something behind its objects, or its objects lack a field.
    """
    source = sources.open(file)
    head = source.fetch(0, HEAD_BYTES)
    text = head.removeprefix(BOM) if sources.encoding == UTF8 else to_utf8(head, sources.encoding)
    complete = len(head) < HEAD_BYTES
    layout = _layout(text, complete)
    if not complete and _is_array(text, source, longest):
        layout = _ARRAY
    if layout is not None:
        raise UserError(f"{file.path} {layout}")
    lacking: UserError | None = None
    for line in _lines(source, longest):
        try:
            converted = line if sources.encoding == UTF8 else to_utf8(line, sources.encoding)
            record = _value(converted.removeprefix(BOM))
        except orjson.JSONDecodeError:
            continue
        if not isinstance(record, dict):
            continue
        try:
            fields.require(record, file.path)
        except UserError as error:
            lacking = lacking or error
            continue
        return
    if lacking is not None:
        raise lacking


def _layout(text: bytes, complete: bool) -> str | None:
    """What is wrong with how a file is written, whose first bytes, or all, are `text`; None where most lines are JSON,
    and where it cannot be told."""
    lines = text.split(b"\n")
    if not complete:
        lines.pop()
    full = list(itertools.islice((line.strip() for line in lines if line.strip()), _JUDGED_LINES))
    bad = [line for line in full if not _is_json(line)]
    if len(full) == 1 and complete and full[0].startswith(b"[") and _is_python_json(full[0]):
        return _ARRAY
    if 2 * len(bad) <= len(full):
        return None
    over_lines, rest = _first_value(text, complete)
    if over_lines and text.lstrip().startswith(b"["):
        # Behind an array nothing else may come; records that are arrays stand on a line each.
        return None if rest else _ARRAY
    if 2 * sum(line[:1] + line[-1:] == b"{," and _is_python_json(line[:-1]) for line in full) > len(full):
        return _COMMAS
    return _PRETTY if over_lines else None


_ARRAY = (
    "is one JSON array and not JSON lines, with an object a line; convert it (jq -c '.[]' IN > OUT does that), or"
    " exclude it"
)
_PRETTY = "has JSON objects over several lines, not one a line; convert it (jq -c . IN > OUT does that), or exclude it"
_COMMAS = "has a comma behind each object; take them off (sed 's/,$//' IN > OUT does that), or exclude it"


def _is_json(line: bytes) -> bool:
    try:
        _value(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_python_json(line: bytes) -> bool:
    """Whether a line is JSON as Python writes it, who has NaN and Infinity as well."""
    try:
        json.loads(line.decode(errors="replace"), parse_int=float)
    except (ValueError, RecursionError):
        return _is_json(line)
    return True


def _value(line: bytes) -> Any:
    """As the reader of the lines takes it."""
    return json_value(line, 0, lambda *noted: None)


def _first_value(data: bytes, complete: bool) -> tuple[bool, bool]:
    """Whether a text begins with a JSON value over several lines, and whether something follows that. A value that goes
    on behind the end of a text that is not complete is followed by nothing."""
    text = data.decode(errors="replace").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False, False
    except json.JSONDecodeError as error:
        # Only what is missing behind the end may be wrong. A string that goes over lines would be no JSON.
        unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        return unfinished and not complete and "\n" in text[: error.pos], False
    return "\n" in text[:end], bool(text[end:].strip())


def _is_array(text: bytes, source: ByteSource, longest: int) -> bool:
    """Whether the one line in a file's first bytes `text`, whole or not, is an array that no other line follows, or one
    too long for a record."""
    line = text.strip()
    ended = b"\n" in text.lstrip()
    if not line.startswith(b"[") or b"\n" in line or (ended and not _is_python_json(line)):
        return False
    place = HEAD_BYTES
    while ended or place <= longest:
        data = source.fetch(place, HEAD_BYTES)
        behind = data if ended else data.partition(b"\n")[2]
        ended = ended or b"\n" in data
        if ended and behind.strip():
            return False
        if len(data) < HEAD_BYTES:
            break
        place += len(data)
    return True


def _lines(source: ByteSource, most: int) -> Iterator[bytes]:
    """The lines of a file up to about so many bytes."""
    place, rest = 0, b""
    while place <= most:
        data = source.fetch(place, HEAD_BYTES)
        place += len(data)
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if len(data) < HEAD_BYTES:
            break
    yield rest
