"""The texts of a file, each with its place, none left out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.durable import read_file
from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.kinds import kinds_by_ending
from data_pipeline.sources.fields import TextField
from data_pipeline.sources.records import read_records

_PACKED = (".gz", ".zst")


class Texts(NamedTuple):
    """What a file holds."""

    texts: list[str]
    labels: list[str] | None
    """One for each, where a field of labels is asked for."""


def read_texts(path: str, field: str | None = None, label_field: str | None = None) -> Texts:
    """All texts of a file, in its order, empty ones included.

    Args:
        path: JSON lines, CSV, TSV, Parquet or Arrow by the end of its name; else text with a text a line; `-`: stdin,
            likewise.
        field: that holds the text, or a template such as `"{title} {body}"`; None: `text`.
        label_field: that holds a label.

    Raises:
        UserError: it cannot be read, has no text at all, or a record without the field; names its place.
    """
    plain = path.lower()
    for ending in _PACKED:
        plain = plain.removesuffix(ending)
    kind = kinds_by_ending().get(Path(plain).suffix)
    if kind is None:
        given = next((name for name, value in (("--field", field), ("--label", label_field)) if value), None)
        if given is not None:
            raise UserError(
                f"{given} is given, but {path} is read as plain text, a text a line, which has no fields; leave it out,"
                f" or give JSON lines, CSV, TSV, Parquet or Arrow"
            )
        found = Texts(_lines(path), None)
    else:
        found = _records(path, kind, field or "text", label_field)
    if not found.texts:
        raise UserError(f"--input {path} has no text; give a file that has some")
    return found


def _lines(path: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if path == "-" else read_file(path)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--input: cannot read {path}: {error.strerror}; name a file of texts") from None
    except UnicodeDecodeError:
        raise UserError(f"--input: {path} is not UTF-8 text; convert it, with a text a line") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _records(path: str, kind: str, field: str, label_field: str | None) -> Texts:
    source = SourceConfig.model_validate({"kind": kind, "paths": [path]})
    text_field = TextField(field, "--", "field")
    texts: list[str] = []
    labels: list[str] = []
    needed = [*text_field.names, *([label_field] if label_field else [])]
    for record in read_records(source, "--input", needed):
        where = f"--input: record {record.number} of {record.path}"
        text = text_field.text(record.fields)
        if text is None:
            raise UserError(f"{where}: {text_field.problem(record.fields)}; repair it, or name another --field")
        texts.append(text)
        if label_field is not None:
            labels.append(_label(record.fields.get(label_field), label_field, where))
    return Texts(texts, labels if label_field is not None else None)


def _label(value: object, field: str, where: str) -> str:
    if value is None or isinstance(value, dict | list):
        raise UserError(f"{where} has no label in {field!r}; give it one, or leave out --label")
    return str(value)
