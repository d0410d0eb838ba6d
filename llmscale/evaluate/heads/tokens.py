"""Asking heads that look at each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_pipeline.batch import Batch
from data_pipeline.objectives.objective import read_twice
from data_pipeline.tokenizer.frame import pad_token
from llmscale.evaluate.batches import MULTIPLE
from llmscale.evaluate.heads.asker import BATCH_TOKENS, HeadAsker


@dataclass(frozen=True)
class TokenRow:
    """A text, or a part of one, as the model was trained to read it."""

    tokens: np.ndarray
    second: int
    """The place at which the second segment begins; as many as there are tokens where there is none."""


class TokenHeadAsker(HeadAsker):
    """Asks a head that looks at each token."""

    @torch.inference_mode()
    def scores(self, rows: Sequence[TokenRow]) -> list[np.ndarray]:
        """(T, outputs) logits of each row. Rows of one padded length alone share a batch, so that none depends on
        others."""
        lengths = [min(-(-len(row.tokens) // MULTIPLE) * MULTIPLE, self._most) for row in rows]
        shapes = [(length, length == len(row.tokens)) for length, row in zip(lengths, rows, strict=True)]
        batches = []
        for shape in sorted(set(shapes)):
            members = [number for number, own in enumerate(shapes) if own == shape]
            size = max(1, BATCH_TOKENS // shape[0])
            batches += [(shape[0], members[first : first + size]) for first in range(0, len(members), size)]
        found: dict[int, np.ndarray] = {}
        for length, part in self.in_turn(batches):
            batch = self._batch([rows[number] for number in part], length)
            found |= dict(zip(part, self._placed.scoring.predict(batch).numpy(), strict=True))
        return [found[number] for number in range(len(rows))]

    def _batch(self, rows: Sequence[TokenRow], length: int) -> Batch:
        architecture = self._placed.config.model.architecture
        inputs = torch.full((len(rows), length), pad_token(self.tokenizer))
        padding_mask, types = torch.zeros(len(rows), length), torch.zeros(len(rows), length, dtype=torch.int64)
        for number, row in enumerate(rows):
            inputs[number, : len(row.tokens)] = torch.from_numpy(row.tokens.astype(np.int64))
            padding_mask[number, : len(row.tokens)] = 1
            types[number, row.second : len(row.tokens)] = 1
        batch = Batch(
            inputs,
            torch.zeros(len(rows), 1, dtype=torch.int64),
            torch.ones(len(rows), 1),
            torch.full((len(rows),), -1),
            encoder_weights=padding_mask,
            segment_ids=types if architecture == "encoder" else None,
        )
        if architecture != "encoder_decoder":
            return batch
        twice = read_twice(inputs.numpy(), self.tokenizer)
        return replace(batch, **{name: torch.from_numpy(values) for name, values in twice.items()})
