"""Labels that a fine-tuned head gives items of kind classify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.batch import make_batch
from data_pipeline.objectives.classification import Classification, ClassificationObjective
from data_pipeline.objectives.packing import Sample, stored_value
from data_pipeline.reading.item import Item
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.batches import MULTIPLE
from llmscale.evaluate.heads.asker import BATCH_TOKENS, HeadAsker
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED
from llmscale.evaluate.tasks.kinds.classify import ClassifyTask


@dataclass(frozen=True)
class _Text:
    """An item as the model was trained to read it."""

    sample: Sample
    length: int
    """Padded, which depends on the item alone."""
    full: bool
    """Whether there is no padding, so that no mask is needed."""
    flags: tuple[str, ...]


class Asker(HeadAsker):
    """Asks the head that objective classification has trained, with one right label."""

    trained_by = ClassificationObjective
    needs = " with one label"
    window = 256

    def __init__(self, placed: Placed, settings: ClassifyTask) -> None:
        super().__init__(placed, settings)
        self.require_labels(settings.labels)
        self._order = [self.objective.labels.index(label) for label in settings.labels]

    @classmethod
    def suits(cls, objective: ClassificationObjective) -> bool:
        return objective.problem == "single_label"

    def found(self, items: Sequence[Item]) -> list[Record]:
        texts = [self._read(item) for item in items]
        probabilities = self._probabilities(texts)
        return [
            Record.of(item, text.flags, probabilities=probabilities[number])
            for number, (item, text) in enumerate(zip(items, texts, strict=True))
        ]

    def _read(self, item: Item) -> _Text:
        first, *rest = (self.tokenizer.encode(text) for text in item.contexts)
        second = rest[0] if rest else []
        tokens = np.array([*first, *second], dtype=np.int32)
        label = (stored_value(self.objective.labels[0]),)  # of no use, but samples have one
        sample = Sample(tokens, (), len(first), values=label)
        packer = Classification(self.objective, self.tokenizer, len(tokens) + MULTIPLE)
        size = int(packer.arrays([sample], [0])["encoder_weights"].sum())
        length = min(-(-size // MULTIPLE) * MULTIPLE, self._most)
        return _Text(sample, length, size >= length, (WINDOWED,) if size > self._most else ())

    @torch.inference_mode()
    def _probabilities(self, texts: Sequence[_Text]) -> dict[int, list[float]]:
        """Probabilities of the labels, in the task's order, by the texts' numbers."""
        by_shape: dict[tuple[int, bool], list[int]] = {}
        for number, text in enumerate(texts):
            by_shape.setdefault((text.length, text.full), []).append(number)
        batches = []
        for shape, members in sorted(by_shape.items()):
            size = max(1, BATCH_TOKENS // shape[0])
            batches += [(shape[0], members[first : first + size]) for first in range(0, len(members), size)]
        found: dict[int, list[float]] = {}
        for length, some in self.in_turn(batches):
            # Products of few rows are left to other kernels: the head's have 16 at least.
            rows = some + [some[0]] * (MULTIPLE - len(some))
            packer = Classification(self.objective, self.tokenizer, length)
            arrays = packer.arrays([texts[number].sample for number in rows], rows)
            logits = self._placed.scoring.predict(make_batch(arrays, np.array(rows, dtype=np.int64)))
            probabilities = logits.softmax(-1)[:, self._order].tolist()
            found |= dict(zip(some, probabilities[: len(some)], strict=True))
        return found
