"""A task: its settings, its data, and the items that they make."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.base.errors import UserError
from data_pipeline.reading.few_shot import Example, FewShotPool, TooFewExamples, content_digest
from data_pipeline.reading.item import Item
from data_pipeline.sources.records import SourceRecord
from llmscale.evaluate.tasks.data import DataChoice, Records, TaskSource
from llmscale.evaluate.tasks.files import SuiteSettings, TaskFile, find_task_file, kind_of, require_metrics
from llmscale.evaluate.tasks.settings import SUBSET, Mistake, Question, TaskSettings, text_of
from llmscale.evaluate.tasks.templates import Unrendered, render

_SHOWN_FIELDS = 20
"""Most fields of a record that a message lists."""


class _Draft:
    """An item without examples, and what is common to all kinds."""

    def __init__(self, question: Question, values: Mapping[str, Any], place: str) -> None:
        self.question = question
        self.preamble, self.cluster, self.group = (
            text_of(values, name) if name in values else None for name in ("preamble", "cluster", "group")
        )
        self.place = place
        """File and number of the record, for messages."""

    @property
    def example(self) -> Example:
        """The same as what may be shown before others."""
        asked = self.question.contexts if any(map(str.strip, self.question.contexts)) else self.question.answers
        return Example(content_digest(asked), self.question.shown or "", self.group, self.cluster)

    def item(self, number: int, examples: str = "") -> Item:
        """The item, with examples before it."""
        before = (self.preamble or "") + examples
        question = self.question
        return Item(
            number=number,
            contexts=tuple(before + context for context in question.contexts) if before else question.contexts,
            answers=question.answers,
            neutral=question.neutral,
            gold=question.gold,
            references=question.references,
            cluster=self.cluster,
            group=self.group,
            scored_bytes=question.scored_bytes,
            scored_words=question.scored_words,
        )


class Splits(Protocol):
    """What reads the splits of a task's data: `TaskSource`."""

    def read(self, split: str, required: Sequence[str], wanted: Sequence[str], files: Sequence[str] = ()) -> Records:
        """The records of a split."""
        ...


class Task:
    """A task that can be evaluated. Data are read, and items made, when they are first asked for."""

    def __init__(self, path: Path, name: str, settings: TaskSettings, source: Splits) -> None:
        """Raises UserError for a metric that is not known, or not for tasks of the kind."""
        self.path = path
        """Of the task file."""
        self.name = name
        self.settings = settings
        """Everything that the file says; what only one kind has is in its class, see `kinds`."""
        self.kind = kind_of(settings)
        self.metrics = list(settings.metrics or settings.DEFAULT_METRICS)
        """What it is measured by, the main one first."""
        require_metrics(path, settings)
        self.warnings: list[str] = []
        """What is to be told about the data, once they were read."""
        self._source = source

    @classmethod
    def of_file(cls, file: TaskFile, choice: DataChoice) -> Task:
        """The task of a file that is none of a suite."""
        assert not isinstance(file.settings, SuiteSettings)
        source = TaskSource(file.name, file.path, file.settings.data, choice)
        return cls(file.path, file.name, file.settings, source)

    @property
    def read_fields(self) -> list[str]:
        """The fields of a record that the templates name."""
        return self.settings.read_fields

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of what the file means and of all items, without examples. Where the data are from, and
        what the task is called, do not count."""
        meaning = self.settings.model_dump(mode="json", exclude={"name", "description", "language", "data", "metrics"})
        if meaning.get("separator", "") is None:  # as it was before there was one
            del meaning["separator"]
        state = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
        for number, draft in enumerate(self._drafts):
            state.update(draft.item(number).digest.encode())
        return state.hexdigest()[:16]

    def items(self, limit: int | None = None, few_shot: int | None = None, seed: int = 0) -> list[Item]:
        """The items, in the order of the data.

        Args:
            limit: most items: the first ones, as many of each group as can be.
            few_shot: examples before each; as many as the task file says where not given.
            seed: of which examples; an item's examples depend on nothing else but the item and the pool.

        Raises:
            UserError: data are missing, a record makes no item, or there are too few examples.
        """
        count = self.settings.few_shot.count if few_shot is None else few_shot
        if count and not self.settings.SHOWS_EXAMPLES:
            raise UserError(
                f"few-shot is {count}, but task {self.name} is of kind {self.kind}, which shows no examples; give 0"
            )
        numbers = self.chosen(limit)
        if not count:
            return self.settings.together([self._drafts[number].item(number) for number in numbers])
        return [self._drafts[number].item(number, self._shown(self._drafts[number], count, seed)) for number in numbers]

    def bare_items(self, limit: int | None = None) -> list[Item]:
        """What `items` asks, without what comes before every item: examples and preamble."""
        drafts = [self._drafts[number] for number in self.chosen(limit)]
        return [replace(draft.item(number), contexts=draft.question.contexts) for number, draft in enumerate(drafts)]

    def chosen(self, limit: int | None) -> list[int]:
        """Numbers of the items that `items` gives."""
        if limit is None or limit >= len(self._drafts):
            return list(range(len(self._drafts)))
        if limit < 1:
            raise UserError(f"limit is {limit}, but an evaluation needs an item; give 1 or more")
        places: dict[str | None, int] = {}
        ranked = []
        for number, draft in enumerate(self._drafts):
            rank = places.get(draft.group, 0)
            places[draft.group] = rank + 1
            ranked.append((rank, number))
        return sorted(number for _, number in sorted(ranked)[:limit])

    def _shown(self, draft: _Draft, count: int, seed: int) -> str:
        settings, item = self.settings.few_shot, draft.example
        try:
            chosen = self._pool.first(count, item) if settings.fixed else self._pool.draw(count, item, seed)
        except TooFewExamples as error:
            group = f" of group {draft.group!r}" if settings.within_group else ""
            raise UserError(
                f"few-shot is {count}, but the pool of task {self.name} has {error.available} examples{group} that are"
                f" not {draft.place} itself; ask for {error.available} or fewer, or give a larger pool"
            ) from None
        return "".join(example.text + settings.separator for example in chosen)

    @functools.cached_property
    def _pool(self) -> FewShotPool:
        settings = self.settings.few_shot
        own = not settings.files and settings.split in (None, self.settings.data.split)
        drafts = self._drafts if own else self._read(settings.split or self.settings.data.split, settings.files)
        return FewShotPool((draft.example for draft in drafts), within_group=settings.within_group)

    @functools.cached_property
    def _drafts(self) -> list[_Draft]:
        return self._read(self.settings.data.split)

    def _read(self, split: str, files: Sequence[str] = ()) -> list[_Draft]:
        found = self._source.read(split, self.settings.required_fields, [*self.read_fields, SUBSET], files)
        if found.missing:
            names = ", ".join(found.missing[:5]) + (", ..." if len(found.missing) > 5 else "")
            total = len(self.settings.data.subsets)
            self.warnings.append(
                f"warning: task {self.name}: {found.origin} lacks {len(found.missing)} of {total} subsets ({names}) of"
                f" split {split}; the score is of the others"
            )
        records = found.records
        try:
            values = render(self.settings.all_templates(), [record.fields for record in records])
        except Unrendered as fault:
            raise UserError(self._unrendered(fault, records)) from None
        drafts = [self._draft(record, row) for record, row in zip(records, values, strict=True)]
        for note, count in Counter(draft.question.note for draft in drafts).items():
            if note is not None:
                self.warnings.append(f"warning: task {self.name}: {count:,} of {len(drafts):,} items of {split} {note}")
        return drafts

    def _draft(self, record: SourceRecord, values: Mapping[str, Any]) -> _Draft:
        try:
            return _Draft(self.settings.question(values), values, _place(record))
        except Mistake as mistake:
            raise UserError(f"{self.path}: {_place(record)}: {mistake}") from None

    def _unrendered(self, fault: Unrendered, records: Sequence[SourceRecord]) -> str:
        what = f"template {fault.template}" if fault.template else "the templates"
        if fault.record is None:
            return f"{self.path}: {what} {fault}"
        record = records[fault.record]
        missing = [name for name in self.read_fields if name not in record.fields]
        if fault.undefined and missing:
            fields = [name for name in record.fields if name != SUBSET][:_SHOWN_FIELDS]
            named = next((name for name in missing if f"'{name}'" in str(fault)), missing[0])
            return (
                f"{self.path}: {what} names {named!r}, but {_place(record)} has no such field, only"
                f" {', '.join(map(repr, fields)) or 'none'}; name one of them, or correct the data"
            )
        return f"{self.path}: {_place(record)}: {what} {fault}"


def _place(record: SourceRecord) -> str:
    return f"record {record.number} of {record.path}"


def load_task(name: str, data: str | Mapping[str | None, str] | None = None, data_root: str | None = None) -> Task:
    """A task by its name or the path of its file.

    Args:
        data: a local file, pattern or folder in place of what the file names; or several, by the split that they hold,
            None for the one that is evaluated.
        data_root: a folder with the data sets, by the name of the task or of the data set; that of the environment
            variable LLMSCALE_DATA_ROOT where not given.

    Raises:
        UserError: there is no such task, its file is not valid, or it is a suite.
    """
    file = find_task_file(name)
    if isinstance(file.settings, SuiteSettings):
        raise UserError(f"{name} is a suite of {len(file.settings.tasks)} tasks; load it as one, or name a task of it")
    paths: dict[str | None, str] = {None: data} if isinstance(data, str) else dict(data or {})
    return Task.of_file(file, DataChoice(paths, data_root))
