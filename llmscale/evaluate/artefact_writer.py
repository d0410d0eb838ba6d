"""Writing an artefact so that it can be killed at any instant and goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_pipeline.base.durable import json_bytes, replace_file, sync_folder, unlinked
from data_pipeline.base.errors import UserError, writing
from llmscale.evaluate.artefact import ITEMS_FILE, META_FILE, QUESTIONS_FILE, Meta, Record

FORMAT = 1


def folder_name(meta: Meta, step: int | None) -> str:
    """Name of the folder of an artefact: its step and task, and a digest of what decides its lines."""
    decisive = {key: value for key, value in asdict(meta).items() if key not in ("checkpoint", "metrics")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    lead = "" if step is None else f"step-{step:08d}-"
    return f"{lead}{meta.task}-{digest}"


class ArtefactWriter:
    """Appends records, in the order of the items, to a new artefact or to one that was interrupted."""

    def __init__(self, folder: Path, meta: Meta, items: Sequence[str], questions: Sequence[Sequence[str]] = ()) -> None:
        """
        Args:
            folder: made where it is not there.
            items: digests of all items, in their order.
            questions: of each item its contexts, without examples; none where they are not to be kept.

        Raises:
            UserError: the folder cannot be written, or holds lines of other items.
        """
        self.folder = folder
        self._path = folder / ITEMS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / META_FILE, json_bytes(asdict(meta)))
            kept = {item: list(texts) for item, texts in zip(items, questions, strict=bool(questions)) if any(texts)}
            if kept:
                replace_file(folder / QUESTIONS_FILE, json_bytes(kept))
            self.done = self._whole_lines(items)
            self._file = open(self._path, "ab", opener=unlinked)  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"cannot write {error.filename or folder} ({error.strerror}); name another folder by --output"
            ) from None
        sync_folder(folder)

    def append(self, records: Sequence[Record]) -> None:
        """Write the next records, and see that they are on the disk."""
        if not records:
            return
        with writing(self._path):
            self._file.write(b"".join(map(line_of, records)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done += len(records)

    def close(self) -> None:
        """Close the file; all records are written already."""
        self._file.close()

    def _whole_lines(self, items: Sequence[str]) -> int:
        """How many items are done already; what a dead writer left of a line after them is cut off."""
        if not self._path.exists():
            return 0
        done = size = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._require_item(line, items, done)
                done, size = done + 1, size + len(line)
        if size != self._path.stat().st_size:
            os.truncate(self._path, size)
        return done

    def _require_item(self, line: bytes, items: Sequence[str], number: int) -> None:
        try:
            written = json.loads(line)["item"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._path} is damaged at line {number + 1}; remove {self.folder}") from None
        wanted = items[number] if number < len(items) else "no item"
        if written != wanted:
            raise UserError(
                f"{self._path} has item {written} at line {number + 1}, but the task has {wanted}; remove {self.folder}"
            )


def line_of(record: Record) -> bytes:
    """A record as a line of `items.jsonl`."""
    return json.dumps(asdict(record), ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
