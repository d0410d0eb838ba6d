"""Looking for items in what a run was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.reading.item import Item
from data_pipeline.seen import SeenText
from data_pipeline.tokenizer import Tokenizer
from llmscale.checkpoint.members import own_checkpoints, recorded_config, recorded_tokenizer
from llmscale.evaluate.contamination.search import NEAR, NGRAM, SHARE, Found, Search
from llmscale.evaluate.contamination.seen_items import Seen, SeenItem
from llmscale.evaluate.contamination.texts import LEAST_WORDS, Wanted, shuffled, texts_of
from llmscale.evaluate.tasks import Task

CONTROLS = 500
"""Texts that cannot have been seen, to be searched for beside those of each task."""


class Asked(NamedTuple):
    """The items of a task, which are looked for."""

    items: Sequence[Item]
    """Without examples."""
    templates: Sequence[str] = ("",)
    """That their contexts were made by."""


def asked_of(task: Task, limit: int | None) -> Asked:
    """What is asked in a task; raises UserError as `Task.items`."""
    named = [each for each in task.settings.all_templates() if each.name.split(".")[0] in ("context", "contexts")]
    return Asked(task.bare_items(limit), [each.source for each in named] or [""])


class TrainedOn:
    """What a run was trained on, opened early, so that what is wrong with it is found before a model is asked."""

    def __init__(self, run: Path, until: int | None = None) -> None:
        """
        Args:
            run: the run's directory.
            until: the last step that counts; None: all of the ledger.

        Raises:
            UserError: it is no run, or has no ledger, or its files, tokenizer or settings are no longer what they were.
        """
        if not (run / "config.yaml").is_file() and next(own_checkpoints(run), None) is None:
            raise UserError(
                f"--contamination {run} is no run, since it has no config.yaml; give the directory that run.directory"
                " named"
            )
        config = recorded_config(run)
        self.run = run
        self._tokenizer: Tokenizer = recorded_tokenizer(run)
        self._text = SeenText(
            run,
            config.data,
            self._tokenizer,
            objective=config.objective,
            seed=config.run.seed,
            cache=run / "cache",
            epochs=config.train.epochs,
            until=until,
        )

    def look_for(
        self, tasks: Sequence[Asked], progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[Seen]:
        """What was seen of the items of each task, in one pass over all that the run was trained on.

        Args:
            progress: told the step, and the last one, after each.

        Raises:
            UserError: the data of a step are not those of the ledger.
        """
        made = [texts_of(*task) for task in tasks]
        controls = [shuffled(texts.wanted, CONTROLS) for texts in made]
        search = Search(
            [text for texts in made for text in texts.wanted]
            + [text for task in controls for control in task for text in control]
        )
        self._read(search, progress)
        found = iter(search.found)
        own = [[(text, next(found)) for text in texts.wanted] for texts in made]
        by_chance = [[[next(found) for _ in control] for control in task] for task in controls]
        return [
            Seen(
                run=str(self.run),
                steps=self._text.steps,
                rule={"ngram": NGRAM, "share": SHARE, "near": NEAR, "least_words": LEAST_WORDS},
                controls=len(chance),
                controls_found=sum(any(each.last for each in control) for control in chance),
                items=_items(pairs),
                short=texts.short,
            )
            for texts, pairs, chance in zip(made, own, by_chance, strict=True)
        ]

    def _read(self, search: Search, progress: Callable[[int, int], None]) -> None:
        step = 0
        progress(step, self._text.steps)
        decode = self._tokenizer.decode
        for passage in self._text.passages():
            if passage.step != step:
                step = passage.step
                progress(step, self._text.steps)
            before, tokens, after = (part.tolist() for part in (passage.before, passage.tokens, passage.after))
            through = decode(before + tokens)
            whole = decode(before + tokens + after) if after else through
            search.add(step, passage.document, decode(before) if before else "", through, whole)


def _items(found: Iterable[tuple[Wanted, Found]]) -> list[SeenItem]:
    """What was found, by items."""
    by_item: dict[int, dict[str, set[int]]] = {}
    last: dict[int, int] = {}
    for text, where in found:
        parts = by_item.setdefault(text.item, {})
        latest = where.last_answered
        if text.alone:
            parts.setdefault(text.part, set()).update(where.steps)
            latest = max(latest, where.last)
        parts.setdefault("both", set()).update(where.answered)
        last[text.item] = max(last.get(text.item, 0), latest)
    return [
        SeenItem(item, last=last[item], **{part: sorted(steps) for part, steps in sorted(parts.items())})
        for item, parts in sorted(by_item.items())
        if last[item]
    ]
