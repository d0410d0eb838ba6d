"""Labels that a fine-tuned head gives items of kind classify."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.batch import make_batch
from data_pipeline.objectives.classification import Classification, ClassificationObjective
from data_pipeline.objectives.packing import Sample, stored_value
from data_pipeline.reading.item import Item
from llmscale.distributed.process_group import gather_to_lead
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.batches import MULTIPLE
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED

WINDOW = 256
"""Items whose records are written at once."""
BATCH_TOKENS = 4096
"""Tokens of a forward pass, about."""


@dataclass(frozen=True)
class _Text:
    """An item as the model was trained to read it."""

    sample: Sample
    length: int
    """Padded, which depends on the item alone."""
    full: bool
    """Whether there is no padding, so that no mask is needed."""
    flags: tuple[str, ...]


class Labeller:
    """Asks the head of a classifier; each data-parallel rank has the whole model, and a share of the items."""

    def __init__(self, placed: Placed, labels: Sequence[str]) -> None:
        """
        Args:
            labels: of the task, in its order.

        Raises:
            UserError: the model has no such head, has other labels, or is cut over ranks.
        """
        objective = placed.config.objective
        if not isinstance(objective, ClassificationObjective) or objective.problem != "single_label":
            raise UserError(
                f"it needs a model that was fine-tuned for it (objective.name=classification with one label), but"
                f" {placed.source.path} was trained by objective {objective.name}; give another checkpoint"
            )
        if sorted(objective.labels) != sorted(labels):
            raise UserError(
                f"its labels are {', '.join(labels)}, but those of {placed.source.path} are"
                f" {', '.join(objective.labels)}; give a model with the same labels"
            )
        placed.own_items(0)
        self._placed = placed
        self._objective = objective
        self._limit = placed.config.model.max_positions
        self._tokenizer = placed.tokenizer
        self._grid = placed.scoring.grid
        self._order = [objective.labels.index(label) for label in labels]

    def records(
        self, items: Sequence[Item], progress: Callable[[int], None] = lambda items: None
    ) -> Iterator[list[Record]]:
        """Records of items, some at a time and in their order; on rank 0, while the others get empty lists."""
        for first in range(0, len(items), WINDOW):
            self._placed.leave_if_asked()
            some = items[first : first + WINDOW]
            texts = [self._read(item) for item in some]
            mine = self._probabilities(texts, self._placed.own_items(len(some)))
            gathered = [mine] if self._grid.world_size == 1 else gather_to_lead(mine)
            if gathered is None:
                yield []
                continue
            found = {number: row for share in gathered for number, row in share.items()}
            progress(len(some))
            yield [_record(item, texts[number], found[number]) for number, item in enumerate(some)]

    def _read(self, item: Item) -> _Text:
        first, *rest = (self._tokenizer.encode(text) for text in item.contexts)
        second = rest[0] if rest else []
        tokens = np.array([*first, *second], dtype=np.int32)
        label = (stored_value(self._objective.labels[0]),)  # of no use, but samples have one
        sample = Sample(tokens, (), len(first), values=label)
        packer = Classification(self._objective, self._tokenizer, len(tokens) + MULTIPLE)
        size = int(packer.arrays([sample], [0])["encoder_weights"].sum())
        length = min(-(-size // MULTIPLE) * MULTIPLE, self._limit)
        return _Text(sample, length, size >= length, (WINDOWED,) if size > self._limit else ())

    @torch.inference_mode()
    def _probabilities(self, texts: Sequence[_Text], numbers: range) -> dict[int, list[float]]:
        """Probabilities of the labels, in the task's order, by the texts' numbers."""
        by_shape: dict[tuple[int, bool], list[int]] = {}
        for number in numbers:
            by_shape.setdefault((texts[number].length, texts[number].full), []).append(number)
        found: dict[int, list[float]] = {}
        for (length, _), members in sorted(by_shape.items()):
            packer = Classification(self._objective, self._tokenizer, length)
            size = max(1, BATCH_TOKENS // length)
            for first in range(0, len(members), size):
                some = members[first : first + size]
                # Products of few rows are left to other kernels: the head's have 16 at least.
                rows = some + [some[0]] * (MULTIPLE - len(some))
                arrays = packer.arrays([texts[number].sample for number in rows], rows)
                logits = self._placed.scoring.predict(make_batch(arrays, np.array(rows, dtype=np.int64)))
                probabilities = logits.softmax(-1)[:, self._order].tolist()
                found |= dict(zip(some, probabilities[: len(some)], strict=True))
        return found


def _record(item: Item, text: _Text, probabilities: list[float]) -> Record:
    return Record(
        number=item.number,
        item=item.digest,
        gold=list(item.gold),
        probabilities=probabilities,
        cluster=item.cluster,
        group=item.group,
        flags=list(text.flags),
    )
