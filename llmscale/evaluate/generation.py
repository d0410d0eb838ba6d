"""Texts that a model writes after the contexts of items."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from data_pipeline.base.errors import UserError
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer.frame import text_frame
from data_pipeline.tokenizer.spelled import SpelledReader
from llmscale.distributed.process_group import gather_to_lead
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED, Overflow
from llmscale.evaluate.tasks.kinds.generate import AsTrained
from llmscale.generate.generator import Completion, Generator
from llmscale.generate.prompts import Context, contexts_of, reading_of, require_generative, room_for
from llmscale.generate.settings import Settings
from llmscale.parallel.grid import RankGrid

WINDOW = 64
"""Items whose records are written at once."""


@dataclass(frozen=True)
class Prompt:
    """An item as the model reads it."""

    item: Item
    context: Context
    flags: tuple[str, ...] = ()


class ItemWriter:
    """Writes the answers to items; each rank has the whole model, and writes its share."""

    def __init__(self, placed: Placed, settings: Settings, samples: int = 1) -> None:
        """
        Args:
            settings: how an answer is written.
            samples: answers for each item.

        Raises:
            UserError: the model continues no text.
        """
        require_generative(placed.config.model)
        self._placed = placed
        # More prompts at once than rows from which on none depends on another cost nothing.
        self._settings = replace(settings, exact=True, batch=max(settings.batch, 32), shorten=True)
        self._samples = samples
        self._model = placed.config.model
        self._reading = reading_of(placed.config.objective)

    @functools.cached_property
    def _generator(self) -> Generator:
        # Not before it is needed: it may bring the weights together.
        return Generator(self._placed.whole, self._placed.tokenizer, self._reading)

    def prompts(self, items: Sequence[Item], overflow: Overflow | AsTrained) -> list[Prompt]:
        """Items as they will be read.

        Raises:
            UserError: one leaves no room for an answer, and `overflow` refuses that (names the item); or the model was
                not trained on sources.
        """
        texts = [item.contexts[0] for item in items]
        if overflow == "as-trained" and self._placed.config.objective.answers == "dialogue":
            reader = SpelledReader(self._placed.tokenizer)
            return [Prompt(item, Context(reader.read(text))) for item, text in zip(items, texts, strict=True)]
        contexts = contexts_of(texts, self._placed.tokenizer, self._model, self._reading)
        if overflow == "as-trained":
            return [self._as_trained(item, context) for item, context in zip(items, contexts, strict=True)]
        return [self._fitted(item, context, overflow) for item, context in zip(items, contexts, strict=True)]

    def _as_trained(self, item: Item, context: Context) -> Prompt:
        objective = self._placed.config.objective
        if objective.answers != "source":
            raise UserError(
                f"its overflow is as-trained, but {self._placed.source.path} was trained by objective {objective.name},"
                f" which has no sources; set overflow to truncate-left"
            )
        length = self._placed.config.data.sequence_length
        excess = len(context.key) - length
        if excess <= 0:
            return Prompt(item, context)
        end = len(context.key) - len(text_frame(self._placed.tokenizer, source=True)[1])
        return Prompt(item, _with_key(context, [*context.key[: end - excess], *context.key[end:]]), (WINDOWED,))

    def _fitted(self, item: Item, context: Context, overflow: Overflow) -> Prompt:
        # A source and what is written after it have the model's context each.
        wanted = 1 if context.source is not None else min(self._settings.max_new_tokens, self._model.max_positions // 2)
        excess = wanted - room_for(context, self._model)
        if excess <= 0:
            return Prompt(item, context)
        if overflow == "refuse":
            raise UserError(
                f"item {item.number} has {len(context.key)} tokens, which leaves no room for {wanted} new ones in the"
                f" model's context of {self._model.max_positions}; give --overflow truncate-left"
            )
        begin = text_frame(self._placed.tokenizer, source=context.source is not None)[0]
        cut = [*context.key[: len(begin)], *context.key[len(begin) + excess :]]
        return Prompt(item, _with_key(context, cut), (WINDOWED,))

    def records(
        self,
        prompts: Sequence[Prompt],
        grid: RankGrid,
        window: int = WINDOW,
        progress: Callable[[int], None] = lambda items: None,
    ) -> Iterator[list[Record]]:
        """Records of items, some at a time and in their order; on rank 0, while the others get empty lists.

        Args:
            window: items at a time of each rank.
            progress: is told how many more items are done, on ranks other than 0 none.
        """
        window *= grid.world_size
        for first in range(0, len(prompts), window):
            some = prompts[first : first + window]
            mine = {number: some[number].context for number in range(grid.rank, len(some), grid.world_size)}
            texts = self._write(mine)
            self._placed.leave_if_asked()
            gathered = [texts] if grid.world_size == 1 else gather_to_lead(texts)
            if gathered is None:
                progress(0)
                yield []
                continue
            written = {number: found for share in gathered for number, found in share.items()}
            progress(len(some))
            yield [
                Record.of(prompt.item, prompt.flags, generated=[completion.text for completion in written[number]])
                for number, prompt in enumerate(some)
            ]

    def _write(self, contexts: dict[int, Context]) -> dict[int, list[Completion]]:
        """What is written after each context. Equal ones are continued once, so that what is drawn for an item does not
        depend on the others."""
        generator = self._generator  # on each rank, whatever its share
        unique = {_key(context): context for context in contexts.values()}
        copies = [context for context in unique.values() for _ in range(self._samples)]
        done: dict[int, Completion] = {}
        for piece in generator.stream_contexts(copies, self._settings) if copies else ():
            if self._placed.stop():
                return {}  # all ranks leave after it
            if piece.completion is not None:
                done[piece.prompt] = piece.completion
        written = iter([completion for _, completion in sorted(done.items())])
        by_key = {key: [next(written) for _ in range(self._samples)] for key in unique}
        return {number: by_key[_key(context)] for number, context in contexts.items()}


def _with_key(context: Context, tokens: list[int]) -> Context:
    """The same with another prompt or source."""
    return replace(context, tokens=tokens) if context.source is None else replace(context, source=tokens)


def _key(context: Context) -> tuple[object, ...]:
    return tuple(context.tokens), None if context.source is None else tuple(context.source)
