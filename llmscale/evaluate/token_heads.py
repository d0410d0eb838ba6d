"""What a fine-tuned head that looks at each token makes of items, whatever is then made of its figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.objectives.objective import read_twice
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer.frame import pad_token
from llmscale.distributed.process_group import gather_to_lead
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.batches import MULTIPLE
from llmscale.evaluate.placed import Placed

ITEMS = 64
"""Items whose records are written at once."""
BATCH_TOKENS = 4096
"""Tokens of a forward pass, about."""


@dataclass(frozen=True)
class TokenRow:
    """A text, or a part of one, as the model was trained to read it."""

    tokens: np.ndarray
    second: int
    """The place at which the second segment begins; as many as there are tokens where there is none."""


class TokenHeadAsker(ABC):
    """Asks a head of that name; each data-parallel rank has the whole model, and a share of the items."""

    name: str
    """Of the head and of its objective."""

    def __init__(self, placed: Placed) -> None:
        """Raises UserError where the model has no such head, or is cut over ranks."""
        objective: Any = placed.config.objective
        if objective.name != self.name:
            raise UserError(
                f"it needs a model that was fine-tuned for it (objective.name={self.name}), but {placed.source.path}"
                f" was trained by objective {objective.name}; give another checkpoint"
            )
        placed.own_items(0)
        self._placed = placed
        self.objective = objective
        self.tokenizer = placed.tokenizer
        self._grid = placed.scoring.grid
        self._encodes = placed.config.model.architecture == "encoder"
        self._most = placed.config.model.max_positions

    @abstractmethod
    def found(self, items: Sequence[Item]) -> list[Record]:
        """The records of some items."""

    def records(
        self, items: Sequence[Item], progress: Callable[[int], None] = lambda items: None
    ) -> Iterator[list[Record]]:
        """Records of items, some at a time and in their order; on rank 0, while the others get empty lists."""
        for first in range(0, len(items), ITEMS):
            self._placed.leave_if_asked()
            some = items[first : first + ITEMS]
            own = self.found([some[place] for place in self._placed.own_items(len(some))])
            shares = [own] if self._grid.world_size == 1 else gather_to_lead(own)
            if shares is not None:
                progress(len(some))
            known = {record.number: record for share in shares or () for record in share}
            yield [known[item.number] for item in some] if shares is not None else []

    @torch.inference_mode()
    def scores(self, rows: Sequence[TokenRow]) -> list[np.ndarray]:
        """(T, outputs) logits of each row. Rows of one padded length alone share a batch, so that none depends on
        others."""
        lengths = [min(-(-len(row.tokens) // MULTIPLE) * MULTIPLE, self._most) for row in rows]
        found: dict[int, np.ndarray] = {}
        shapes = [(length, length == len(row.tokens)) for length, row in zip(lengths, rows, strict=True)]
        for shape in sorted(set(shapes)):
            members = [number for number, own in enumerate(shapes) if own == shape]
            size = max(1, BATCH_TOKENS // shape[0])
            for first in range(0, len(members), size):
                part = members[first : first + size]
                batch = self._batch([rows[number] for number in part], shape[0])
                found |= dict(zip(part, self._placed.scoring.predict(batch).numpy(), strict=True))
        return [found[number] for number in range(len(rows))]

    def _batch(self, rows: Sequence[TokenRow], length: int) -> Batch:
        inputs = torch.full((len(rows), length), pad_token(self.tokenizer))
        real, types = torch.zeros(len(rows), length), torch.zeros(len(rows), length, dtype=torch.int64)
        for number, row in enumerate(rows):
            inputs[number, : len(row.tokens)] = torch.from_numpy(row.tokens.astype(np.int64))
            real[number, : len(row.tokens)] = 1
            types[number, row.second : len(row.tokens)] = 1
        batch = Batch(
            inputs,
            torch.zeros(len(rows), 1, dtype=torch.int64),
            torch.ones(len(rows), 1),
            torch.full((len(rows),), -1),
            encoder_weights=real,
            segment_ids=types if self._encodes else None,
        )
        if self._placed.config.model.architecture != "encoder_decoder":
            return batch
        twice = read_twice(inputs.numpy(), self.tokenizer)
        return replace(batch, **{name: torch.from_numpy(values) for name, values in twice.items()})
