"""What was found of an artefact's items, kept beside it: `seen.json`. The lines of the artefact stay as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.base.durable import json_bytes, read_file, replace_file
from data_pipeline.base.errors import UserError, writing

SEEN_FILE = "seen.json"
FORMAT = 1


@dataclass(frozen=True)
class SeenItem:
    """An item of which something was found. Steps are those that saw it, or the last words of it."""

    number: int
    """Its place in the task."""
    question: list[int] = field(default_factory=list)
    """Steps that saw the question."""
    answer: list[int] = field(default_factory=list)
    """Steps that saw the answer by itself, where it is long enough to tell."""
    both: list[int] = field(default_factory=list)
    """Steps that saw the question with a right answer behind it."""
    last: int = 0
    """The last step of all."""

    @property
    def answered(self) -> bool:
        """Whether the answer was seen, after the question or by itself."""
        return bool(self.both or self.answer)

    @property
    def flags(self) -> list[str]:
        """What `Record.flags` says of it."""
        return ["seen", "seen with answer"] if self.answered else ["seen"]


@dataclass(frozen=True)
class Seen:
    """What a run was trained on of a task's items."""

    run: str
    """Its directory."""
    steps: int
    """How many of its steps were read, from the first on."""
    rule: dict[str, float]
    """By which texts were found."""
    controls: int
    """Texts with their words in random order that were searched for likewise."""
    controls_found: int
    items: list[SeenItem]
    """Those of which something was found, in the order of the task."""
    short: list[int] = field(default_factory=list)
    """Numbers of items that are too short to be found."""
    format: int = FORMAT

    @property
    def by_number(self) -> dict[int, SeenItem]:
        """Items by their place in the task."""
        return {item.number: item for item in self.items}


def write_seen(folder: Path, seen: Seen) -> None:
    """Keep what was found beside an artefact, in place of what was there.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / SEEN_FILE
    try:
        with writing(path):
            replace_file(path, json_bytes(asdict(seen)))
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); make room, or name another folder by --output"
        ) from None


def load_seen(folder: Path) -> Seen | None:
    """What was found of an artefact's items; None where nobody has looked.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SEEN_FILE
    if not path.exists():
        return None
    try:
        seen: Any = TypeAdapter(Seen).validate_json(read_file(path), strict=True)
    except (ValidationError, OSError):
        raise UserError(f"{path} is damaged; remove it, and look again by --contamination RUN") from None
    if seen.format != FORMAT:
        raise UserError(f"{path} has format {seen.format}, but this version of llmscale reads {FORMAT}; remove it")
    return seen  # type: ignore[no-any-return]
