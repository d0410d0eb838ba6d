"""Task files and data of tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

CAPITALS: list[dict[str, Any]] = [
    {"q": "France", "options": ["Rome", "Paris"], "right": 1, "topic": "west"},
    {"q": "Italy", "options": ["Rome", "Paris", "Oslo"], "right": 0, "topic": "south"},
    {"q": "Norway", "options": ["Bern", "Oslo"], "right": 1, "topic": "north"},
]
CHOICE: dict[str, Any] = {
    "kind": "choice",
    "language": "en",
    "data": {"files": ["capitals.jsonl"]},
    "context": "The capital of {{ q }} is",
    "answers": "{{ options }}",
    "gold": "{{ right }}",
}


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_task(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "capitals") -> str:
    """The path of a task file: `CHOICE` with other values; a value of None is left out."""
    settings = {key: value for key, value in {**CHOICE, **(changes or {})}.items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return str(path)


def write_capitals(folder: Path, changes: Mapping[str, Any] | None = None) -> str:
    """The path of a task file beside its data."""
    write_lines(folder / "capitals.jsonl", CAPITALS)
    return write_task(folder, changes)
