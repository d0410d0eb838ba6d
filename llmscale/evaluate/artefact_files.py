"""Reading artefacts back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.base.durable import parse_json, read_file
from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import ITEMS_FILE, META_FILE, QUESTIONS_FILE, Artefact, Meta, Record
from llmscale.evaluate.artefact_writer import FORMAT
from llmscale.evaluate.contamination.seen_items import load_seen


def load_artefact(path: str | Path) -> Artefact:
    """An evaluation's folder; a line that its writer did not finish is left out.

    Raises:
        UserError: the folder is none, is of another format, or is damaged; the message has file and line.
    """
    folder = Path(path)
    meta, records, seen = load_meta(folder), load_records(folder / ITEMS_FILE), load_seen(folder)
    if seen is not None:
        flags = {number: item.flags for number, item in seen.by_number.items()}
        records = [replace(each, flags=[*each.flags, *flags.get(each.number, [])]) for each in records]
    return Artefact(str(path), meta, records, seen)


def load_meta(folder: Path) -> Meta:
    """What an artefact is of; raises UserError as `load_artefact`."""
    path = folder / META_FILE
    contents = _contents(path, folder)
    try:
        meta: Any = parse_json(contents)
    except ValueError:
        raise UserError(f"{path} is damaged: it is no JSON; evaluate again into another folder") from None
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}, but this version of llmscale reads {FORMAT}; evaluate again")
    try:
        return _adapter(Meta).validate_json(contents, strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {_first_problem(error)}; evaluate again into another folder") from None


def load_records(path: Path) -> list[Record]:
    """The lines of an artefact; raises UserError as `load_artefact`."""
    lines = _contents(path, path.parent).split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not _is_whole(line):
            break  # still being written, or cut off by a kill
        records.append(_record(line, path, number, after=records[-1].number if records else -1))
    return records


def load_questions(folder: Path) -> dict[str, list[str]]:
    """Contexts of an artefact's items by the item's digest; empty for one that has none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / QUESTIONS_FILE
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, list[str]]).validate_json(_contents(path, folder), strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {_first_problem(error)}; remove it to go without") from None


def _record(line: bytes, path: Path, number: int, after: int) -> Record:
    try:
        # Strict as JSON has it: an array is a tuple too, but no text is a number.
        record: Record = _adapter(Record).validate_json(line, strict=True)
    except ValidationError as error:
        problem = _first_problem(error)
    else:
        if record.number > after:
            return record
        problem = f"item {record.number} follows item {after}"
    raise UserError(f"{path}:{number} is damaged: {problem}; remove {path.parent} and evaluate again")


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _contents(path: Path, folder: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise UserError(
            f"{folder} is no evaluation, since {path.name} cannot be read ({error.strerror}); name a folder that"
            " llmscale eval wrote"
        ) from None


@cache
def _adapter(record: type) -> TypeAdapter[Any]:
    return TypeAdapter(record)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].replace("\n", " ")
    return f"{place}: {message}" if place else message
