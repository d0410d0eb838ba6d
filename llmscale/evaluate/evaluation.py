"""Tasks on a model: each an artefact, in one pass over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError, about
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import Reader
from llmscale.distributed.agreement import on_rank_zero, together
from llmscale.evaluate.artefact import Meta, Record
from llmscale.evaluate.artefact_writer import FORMAT, ArtefactWriter, folder_name
from llmscale.evaluate.generation import ItemWriter
from llmscale.evaluate.heads import head_asker
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers import Length, Overflow, Scorer, scorer_for
from llmscale.evaluate.scorers.causal import Causal
from llmscale.evaluate.scoring import BATCH_TOKENS, Asked, RowScorer, records_of
from llmscale.evaluate.tasks import Task
from llmscale.evaluate.tasks.kinds.perplexity import PerplexityTask
from llmscale.generate.prompts import reading_of
from llmscale.generate.settings import Settings


@dataclass(frozen=True)
class Choices:
    """What the user says about how tasks are evaluated."""

    limit: int | None = None
    few_shot: int | None = None
    seed: int = 0
    scorer: str | None = None
    overflow: Overflow | None = None
    """For items that a task would refuse."""
    batch_tokens: int = BATCH_TOKENS
    output: Path | None = None
    """Folder of the artefacts; None: `evaluations` of the run."""


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to be asked."""

    task: Task
    items: list[Item]
    meta: Meta
    folder: Path
    records: Callable[[int, Callable[[int], None]], Iterator[list[Record]]]
    """From the item of that place on, some at a time; collective. It tells how many more are done."""
    warnings: list[str] = field(default_factory=list)


def prepare(placed: Placed, tasks: Sequence[Task], choices: Choices) -> list[Prepared]:
    """Read all items of all tasks, so that whatever is wrong with them is found before anything is computed.

    Raises:
        UserError: on every rank: data that are missing or make no items, an item that is too long, an answer that
            becomes no token, or a model that a task is not for.
    """
    return [together(lambda task=task: _prepare(placed, task, choices)) for task in tasks]  # type: ignore[misc]


def run(prepared: Sequence[Prepared], progress: Callable[[str, int, int], None]) -> None:
    """Evaluate what is not done yet; collective. `progress` is told the task, the items done and all of its items.

    Raises:
        Interrupted: a rank wants to leave; what is done until then is kept.
    """
    for each in prepared:
        writer = None

        def begin(each: Prepared = each) -> tuple[ArtefactWriter, int]:
            digests = [item.digest for item in each.items]
            questions = [item.contexts for item in each.task.bare_items(each.meta.limited)]
            opened = ArtefactWriter(each.folder, each.meta, digests, questions)
            return opened, opened.done

        writer, done = _on_rank_zero(begin)
        counter = _Counter(each, done, progress)
        try:
            for records in each.records(done, counter):
                if writer is not None:
                    writer.append(records)
        finally:
            if writer is not None:
                writer.close()


class _Counter:
    """Adds up the items of a task that are done."""

    def __init__(self, prepared: Prepared, done: int, progress: Callable[[str, int, int], None]) -> None:
        self._prepared, self._done, self._progress = prepared, done, progress
        progress(prepared.task.name, done, len(prepared.items))

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(self._prepared.task.name, self._done, len(self._prepared.items))


def _on_rank_zero(begin: Callable[[], tuple[ArtefactWriter, int]]) -> tuple[ArtefactWriter | None, int]:
    """Rank 0's writer, there alone, and on every rank how many items are done."""
    kept: list[ArtefactWriter] = []

    def open_it() -> int:
        writer, done = begin()
        kept.append(writer)
        return done

    done = on_rank_zero(open_it)
    return (kept[0] if kept else None), done


def _prepare(placed: Placed, task: Task, choices: Choices) -> Prepared:
    items = task.items(choices.limit, choices.few_shot, choices.seed)
    asks = _written if task.settings.WRITTEN else _scored
    scorer, options, records = _by_head(placed, task, items) or asks(placed, task, items, choices)
    reader = _reader(placed)
    meta = Meta(
        format=FORMAT,
        task=task.name,
        task_digest=task.digest,
        kind=task.kind,
        metrics=task.metrics,
        items=len(items),
        limited=choices.limit,
        few_shot=task.settings.few_shot.count if choices.few_shot is None else choices.few_shot,
        checkpoint=placed.source.path,
        model=placed.source.digest,
        reading=hashlib.sha256(reader.digest.encode()).hexdigest()[:16],
        scorer=scorer,
        exactness=placed.whole_exactness if task.settings.WRITTEN else placed.exactness,
        options={**options, "seed": choices.seed, "language": task.settings.language},
    )
    folder = (choices.output or placed.source.evaluations) / folder_name(meta, placed.source.step)
    return Prepared(task, items, meta, folder, records, list(task.warnings))


def _reader(placed: Placed) -> Reader:
    return Reader(placed.tokenizer, placed.config.model.architecture, reading_of(placed.config.objective))


_Records = Callable[[int, Callable[[int], None]], Iterator[list[Record]]]


def _scored(
    placed: Placed, task: Task, items: Sequence[Item], choices: Choices
) -> tuple[str, dict[str, Any], _Records]:
    model = placed.config.model
    settings = task.settings
    length = Length(_overflow(task, choices), getattr(settings, "window", None), getattr(settings, "stride", None))
    scorer = scorer_for(model, placed.config.objective, choices.scorer)(_reader(placed), model, length)
    if isinstance(settings, PerplexityTask) and settings.documents == "joined":
        asked = _joined(scorer, settings, items, task)
    else:
        asked = [_ask(scorer, item, task) for item in items]
    rows = RowScorer(placed.scoring, model, placed.tokenizer, choices.batch_tokens, placed.leave_if_asked)
    options = {"overflow": length.overflow, "window": length.window, "stride": length.stride}
    return scorer.name, options, lambda done, progress: records_of(asked[done:], rows, progress=progress)


def _ask(scorer: Scorer, item: Item, task: Task) -> Asked:
    with about(f"task {task.name}, item {item.number}"):
        return Asked(item, scorer.request(item))


def _joined(scorer: Scorer, settings: PerplexityTask, items: Sequence[Item], task: Task) -> list[Asked]:
    """Items of one group in one stream of tokens."""
    if not isinstance(scorer, Causal):
        raise UserError(
            f"task {task.name}: documents is joined, which decoders read, but the scorer of this checkpoint is"
            f" {scorer.name}; set documents to separate"
        )
    groups: dict[str | None, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.group, []).append(place)
    found: dict[int, Asked] = {}
    for places in groups.values():
        some = [items[place] for place in places]
        with about(f"task {task.name}"):
            requests = scorer.joined(some, settings.separator)
        found |= {place: Asked(items[place], request) for place, request in zip(places, requests, strict=True)}
    return [found[place] for place in range(len(items))]


def _written(
    placed: Placed, task: Task, items: Sequence[Item], choices: Choices
) -> tuple[str, dict[str, Any], _Records]:
    asked = task.settings
    settings = Settings(
        max_new_tokens=asked.max_new_tokens,  # type: ignore[attr-defined]
        temperature=asked.temperature,  # type: ignore[attr-defined]
        stop=tuple(asked.until),  # type: ignore[attr-defined]
        seed=choices.seed,
    )
    with about(f"task {task.name}"):
        writer = ItemWriter(placed, settings, asked.samples)  # type: ignore[attr-defined]
        prompts = writer.prompts(items, _overflow(task, choices))
    options = {"max_new_tokens": settings.max_new_tokens, "temperature": settings.temperature, "until": asked.until}  # type: ignore[attr-defined]
    grid = placed.scoring.grid
    return "generate", options, lambda done, progress: writer.records(prompts[done:], grid, progress=progress)


def _overflow(task: Task, choices: Choices) -> Any:
    refused = task.settings.overflow == "refuse" and choices.overflow is not None
    return choices.overflow if refused and choices.overflow else task.settings.overflow


def _by_head(placed: Placed, task: Task, items: Sequence[Item]) -> tuple[str, dict[str, Any], _Records] | None:
    """None where no head answers tasks of that kind."""
    with about(f"task {task.name}"):
        asker = head_asker(placed, task)
    if asker is None:
        return None
    return "head", {}, lambda done, progress: asker.records(items[done:], progress)
