"""The records of a task: from files that are given, below a data root, beside the task file, or from the hub."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_pipeline.base.durable import read_file
from data_pipeline.base.encodings import UTF8
from data_pipeline.base.errors import UserError, first_line
from data_pipeline.config import SourceConfig
from data_pipeline.kinds import kinds_by_ending, source_kind
from data_pipeline.reading.rendering import RENDERER
from data_pipeline.sources.files import local_paths
from data_pipeline.sources.records import SourceRecord, read_records
from llmscale.evaluate.tasks.settings import SUBSET, TaskData

DATA_ROOT = "LLMSCALE_DATA_ROOT"
"""Environment variable: a folder with a folder or file for each data set."""
_LINES, _WHOLE = "jsonl", "json"
"""The kinds of sources that a `.json` file can be."""
_ENDINGS = {
    **{ending: name for ending, name in kinds_by_ending().items() if source_kind(name).has_fields},
    ".json": _WHOLE,
    ".txt": "text",
}
"""Kinds by the ends of files' names; `text` counts where the task file says nothing else."""
_COMPRESSED = (".gz", ".zst")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the datasets library saves beside data."""
_SAME_SPLIT = {
    "validation": ("valid", "val", "dev"),
    "dev": ("validation", "valid", "val"),
    "val": ("validation", "valid", "dev"),
}
"""Other names of a split, where none has its own."""
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
"""By these files are known to be divided."""


@dataclass(frozen=True)
class DataChoice:
    """Where this start has the data of a task, instead of where its file says."""

    paths: Mapping[str | None, str] = field(default_factory=dict)
    """A file, pattern or folder by the split that it holds; None for the one that is evaluated, and for a folder that
    holds all."""
    root: str | None = None
    """A folder with a folder or file for each data set, by the task's name or the data set's on the hub."""


@dataclass
class Records:
    """Records that were read."""

    records: list[SourceRecord]
    """With their subset, where they have no field of that name."""
    origin: str
    """Where they are from, for messages."""
    missing: list[str] = field(default_factory=list)
    """Subsets of the data set that the files lack."""


class TaskSource:
    """Reads the splits of a task's data."""

    def __init__(self, name: str, path: Path, data: TaskData, choice: DataChoice) -> None:
        self._name = name
        self._path = path
        self._data = data
        self._paths = choice.paths
        self._root = choice.root or os.environ.get(DATA_ROOT)

    def read(self, split: str, required: Sequence[str], wanted: Sequence[str], files: Sequence[str] = ()) -> Records:
        """The records of a split.

        Args:
            required: fields that every file must have.
            wanted: fields to take where they are.
            files: those of the task file that hold the split, where it says so.

        Raises:
            UserError: there are none, or they cannot be read.
        """
        data = self._data
        given, folder = self._given(split)
        if given is not None:
            records = self._from_files(given, folder, split, required, wanted)
        elif files or data.files:
            patterns = [str(self._path.parent / each) for each in files or data.files]
            records = Records(list(self._files(patterns, required, wanted)), ", ".join(patterns))
        elif data.hub:
            records = self._from_hub(split, required, wanted)
        elif not data.parallel:
            raise UserError(
                f"task {self._name} needs the data of {data.home}, which is not on the hub; give its files with --data"
                f" {self._name}=PATH, or a folder of data sets with --data-root (or {DATA_ROOT})"
            )
        else:
            records = self._from_parallel(str(self._path.parent), split)
        if not records.records:
            raise UserError(f"{self._path}: {records.origin} has no record; give data that have some")
        return records

    def _given(self, split: str) -> tuple[str | None, bool]:
        """The file, pattern or folder that is chosen for a split, and whether it is a folder."""
        path = self._paths.get(split)
        if path is None:
            path = self._paths.get(None)
            if path is not None and split != self._data.split and not os.path.isdir(path):
                raise UserError(
                    f"task {self._name} needs split {split!r}, too, but --data {self._name}={path} is a file of split"
                    f" {self._data.split!r}; add --data {self._name}:{split}=PATH, or give a folder with both"
                )
        if path is None and self._root is not None:
            path = self._below_root(self._root)
        return path, path is not None and os.path.isdir(path)

    def _below_root(self, root: str) -> str | None:
        if not os.path.isdir(root):
            raise UserError(f"the data root {root} is no folder; correct it, or leave it out")
        subset = self._data.subset
        names, entries = self._known_as, list(os.scandir(root))
        folders = {entry.name.lower(): entry.path for entry in entries if entry.is_dir()}
        for name in names:
            folder = os.path.join(root, name) if "/" in name else folders.get(name.lower(), "")
            below = [folder]
            if isinstance(subset, str):
                below.insert(0, os.path.join(folder, subset))
            for path in below:
                if folder and os.path.isdir(path):
                    return path
        files = sorted(entry.path for entry in entries if entry.is_file())
        begun = {path: os.path.basename(path).lower() for path in files}
        return next((path for name in names for path in files if begun[path].startswith(f"{name.lower()}.")), None)

    @property
    def _known_as(self) -> list[str]:
        """What a data root may call the data."""
        hub, subset = self._data.hub or "", self._data.subset
        names = [self._name, hub, hub.rpartition("/")[2], *([subset] if isinstance(subset, str) else [])]
        return list(dict.fromkeys(filter(None, names)))

    def _from_files(
        self, path: str, folder: bool, split: str, required: Sequence[str], wanted: Sequence[str]
    ) -> Records:
        if self._data.parallel and folder:
            return self._from_parallel(path, split)
        if not folder:
            return Records(list(self._files([path], required, wanted)), path)
        records: list[SourceRecord] = []
        missing = []
        for subset in self._data.subsets:
            files = self._of_split(path, subset, split)
            if not files and isinstance(self._data.subset, list):
                missing.append(str(subset))
            records += self._files(files, required, wanted, subset)
        if not records:
            looked = f" of subset {self._data.subset}" if isinstance(self._data.subset, str) else ""
            raise UserError(
                f"task {self._name}: {path} has no file of split {split!r}{looked}; name the file with --data"
                f" {self._name}{'' if split == self._data.split else ':' + split}=PATH"
            )
        return Records(records, path, missing)

    def _of_split(self, folder: str, subset: str | None, split: str) -> list[str]:
        """The data files below a folder whose path names a split, and the subset where any does. Where none names any
        split they are all what is evaluated."""
        files = sorted(
            str(path)
            for path in Path(folder).rglob("*")
            if path.is_file() and path.name not in _ABOUT and self._format(str(path)) is not None
        )
        parts = {path: os.path.relpath(path, folder).split(os.sep) for path in files}

        def named_by(path: str, name: str) -> bool:
            in_file = re.search(rf"(^|[-._]){re.escape(name)}($|[-._])", parts[path][-1])
            return name in parts[path] or in_file is not None

        if subset is not None:
            named = [path for path in files if subset in (*parts[path][:-1], _stem(path), _bare(path))]
            files = named if named or isinstance(self._data.subset, list) else files
        for name in (self._data.split_files.get(split, split), *_SAME_SPLIT.get(split, ())):
            chosen = [path for path in files if named_by(path, name)]
            if chosen:
                return chosen
        names = {*_SPLITS, *self._data.split_files, *self._data.split_files.values()}
        divided = split != self._data.split or any(named_by(path, name) for path in files for name in names)
        return [] if divided else files

    def _files(
        self, patterns: Sequence[str], required: Sequence[str], wanted: Sequence[str], subset: str | None = None
    ) -> Iterator[SourceRecord]:
        paths = [path for pattern in patterns for path in (sorted(local_paths(pattern)) or [pattern])]
        for path in paths:
            kind = self._format(path) or "text"
            name = subset if subset is not None else _bare(path)
            for record in self._file(path, kind, required, wanted):
                yield record._replace(fields={SUBSET: name, **record.fields})

    def _format(self, path: str) -> str | None:
        """By the name's ending, else as the task file says."""
        name = path.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        ending = os.path.splitext(name)[1]
        kind = _ENDINGS.get(ending)
        if kind is None or not source_kind(kind).has_fields:
            kind = self._data.format or kind
        return _LINES if kind == _WHOLE and _is_json_lines(path) else kind

    def _file(self, path: str, kind: str, required: Sequence[str], wanted: Sequence[str]) -> Iterator[SourceRecord]:
        data, where, about = self._data, str(self._path), source_kind(kind)
        if about.is_plain:
            yield from self._text(path)
            return
        settings: dict[str, Any] = {"kind": kind, "paths": [path]}
        if about.delimiter is not None:
            given = {"quote": data.quote, "delimiter": data.delimiter}
            settings |= {name: value for name, value in given.items() if value is not None}
        if about.is_text:
            settings["encoding"] = data.encoding
        source = SourceConfig.model_validate(settings)
        nested = data.records if about.is_nested else None
        yield from read_records(source, where, required, wanted, columns=data.columns, nested=nested)

    def _text(self, path: str) -> Iterator[SourceRecord]:
        lines = self._lines(path)
        if self._data.begins is not None:
            begins = RENDERER.matches(self._data.begins, lines, f"{self._path}: data.begins")
            starts = [place for place, new in enumerate(begins) if new]
            texts = ["\n".join(lines[i:j]) for i, j in zip(starts, [*starts[1:], len(lines)], strict=True)]
            if starts and any(line.strip() for line in lines[: starts[0]]):
                texts.insert(0, "\n".join(lines[: starts[0]]))
        else:
            texts = lines if self._data.document == "line" else ["\n".join(lines)]
        full = [text for text in texts if text.strip()]
        yield from (SourceRecord({"text": text}, path, number) for number, text in enumerate(full, start=1))

    def _from_parallel(self, folder: str, split: str) -> Records:
        called = self._data.split_files.get(split, split)
        named = {name: each.replace("{split}", called) for name, each in self._data.parallel.items()}
        paths = {name: os.path.join(folder, each) for name, each in named.items()}
        return Records(list(self._parallel(paths)), " and ".join(paths.values()))

    def _parallel(self, paths: Mapping[str, str]) -> Iterator[SourceRecord]:
        columns = {name: self._lines(path) for name, path in paths.items()}
        for column in columns.values():
            if column and not column[-1]:
                column.pop()  # behind the last newline
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{paths[name]} has {count:,}" for name, count in counts.items())
            raise UserError(f"{self._path}: data.parallel needs files of equally many lines, but {said}; correct them")
        first = next(iter(paths.values()))
        for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
            yield SourceRecord(dict(zip(columns, row, strict=True)), first, number)

    def _lines(self, path: str) -> list[str]:
        encoding = self._data.encoding or UTF8
        try:
            text = read_file(path).decode(encoding)
        except OSError as error:
            raise UserError(f"{self._path}: cannot read {path}: {error.strerror}; correct the path") from None
        except UnicodeDecodeError:
            raise UserError(
                f"{self._path}: {path} is not {encoding} text; set data.encoding, or convert the file"
            ) from None
        return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")

    def _from_hub(self, split: str, required: Sequence[str], wanted: Sequence[str]) -> Records:
        data, records = self._data, []
        for subset in data.subsets:
            name = f"{data.hub}{f' ({subset})' if subset else ''}, split {split}"
            try:
                import datasets

                rows = datasets.load_dataset(data.hub, subset, split=split, revision=data.revision)
            except Exception as error:  # the library raises its own, the file system's and the network's
                known = " or ".join(self._known_as)
                looked = f" (the data root {self._root} has no folder or file {known})" if self._root else ""
                raise UserError(
                    f"task {self._name}: cannot open data set {name}: {first_line(error)}{looked}; give files with"
                    f" --data {self._name}=PATH, or a folder of data sets with --data-root (or {DATA_ROOT})"
                ) from None
            missing = sorted(set(required) - set(rows.column_names) - {SUBSET})
            if missing:
                raise UserError(
                    f"{self._path}: data set {name} has no field {missing[0]!r} but"
                    f" {', '.join(map(repr, rows.column_names))}; set data.revision to one that has, or correct the"
                    f" templates"
                )
            taken = [column for column in rows.column_names if column in {*required, *wanted}]
            for number, row in enumerate(rows.select_columns(taken), start=1):
                records.append(SourceRecord({SUBSET: subset, **row}, name, number))
        return Records(records, f"data set {data.hub}")


def _is_json_lines(path: str) -> bool:
    """Whether a file's first line is an object and another one follows, whatever the file's name says."""
    try:
        with open(path, "rb") as file:
            lines = [line for line in itertools.islice(file, 3) if line.strip()]
        return len(lines) > 1 and all(isinstance(orjson.loads(line), dict) for line in lines[:2])
    except (OSError, ValueError):
        return False  # whoever reads it says what is wrong


def _stem(path: str) -> str:
    """A file's name without ending."""
    return os.path.basename(path).split(".")[0]


def _bare(path: str) -> str:
    """The same without a split at its end: `law` of `law_val.csv`."""
    return re.sub(r"(?<=.)[-_](train|test|validation|valid|val|dev)$", "", _stem(path))
