"""Answers that a fine-tuned head finds in the passages of items of kind span."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.objectives.span import NAME, Span, SpanObjective
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer.frame import pad_token
from llmscale.distributed.process_group import gather_to_lead
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.batches import MULTIPLE
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.scorers.scorer import WINDOWED
from llmscale.evaluate.tasks.kinds.span import SpanTask
from llmscale.model.heads import heads_of
from llmscale.objectives.loss import build_loss

ITEMS = 64
"""Items whose records are written at once."""
BATCH_TOKENS = 4096
"""Tokens of a forward pass, about."""


@dataclass(frozen=True)
class _Row:
    """A window of an item's passage, as the model was trained to read it."""

    tokens: np.ndarray
    passage: range
    """Places of the passage's tokens."""
    nowhere: int
    """The place that stands for no answer."""
    spans: np.ndarray
    """(P, 2) bytes of the passage's tokens."""


class SpanFinder:
    """Asks the head that objective span has trained; each data-parallel rank has the whole model, and a share of the
    items."""

    def __init__(self, placed: Placed, settings: SpanTask) -> None:
        """Raises UserError where the model has no such head, or is cut over ranks."""
        objective = placed.config.objective
        if not isinstance(objective, SpanObjective):
            raise UserError(
                f"it needs a model that was fine-tuned for it (objective.name=span), but {placed.source.path} was"
                f" trained by objective {objective.name}; give another checkpoint"
            )
        if placed.trained is None:
            raise UserError("it needs a whole model on each rank, but this layout cuts it; leave out parallel's sizes")
        self._settings = settings
        self._model = placed.trained.model
        self._grid = placed.scoring.grid
        self._tokenizer = placed.tokenizer
        self._encodes = placed.config.model.architecture == "encoder"
        self._most = placed.config.model.max_positions
        self._made = Span(objective, placed.tokenizer, placed.config.data.sequence_length)
        self._loss = build_loss(objective, placed.config.model)
        self._head = next(head for head in heads_of(placed.config.model) if head.name == NAME)

    def records(
        self, items: Sequence[Item], progress: Callable[[int], None] = lambda items: None
    ) -> Iterator[list[Record]]:
        """Records of items, some at a time and in their order; on rank 0, while the others get empty lists."""
        for first in range(0, len(items), ITEMS):
            some = items[first : first + ITEMS]
            own = self._found(some[self._grid.coordinate("data") :: self._grid.data])
            shares = [own] if self._grid.world_size == 1 else gather_to_lead(own)
            if shares is not None:
                progress(len(some))
            known = {record.number: record for share in shares or () for record in share}
            yield [known[item.number] for item in some] if shares is not None else []

    def _found(self, items: Sequence[Item]) -> list[Record]:
        read = [self._rows(item) for item in items]
        scores = iter(self._scores([row for rows in read for row in rows]))
        records = []
        for item, rows in zip(items, read, strict=True):
            text = self._answer(item.contexts[1], rows, [next(scores) for _ in rows])
            records.append(
                Record(
                    number=item.number,
                    item=item.digest,
                    references=list(item.references),
                    generated=[text],
                    cluster=item.cluster,
                    group=item.group,
                    flags=[WINDOWED] if len(rows) > 1 else [],
                )
            )
        return records

    def _rows(self, item: Item) -> list[_Row]:
        question, passage = item.contexts
        ids, spans = self._tokenizer.encode_with_spans(passage)
        rows = []
        for window in self._made.windows(np.array(self._tokenizer.encode(question), dtype=np.int32), ids):
            tokens, first, nowhere = self._made.row(window.question, window.tokens)
            size = len(window.tokens)
            rows.append(_Row(tokens, range(first, first + size), nowhere, spans[window.first : window.first + size]))
        return rows

    @torch.inference_mode()
    def _scores(self, rows: Sequence[_Row]) -> list[np.ndarray]:
        """(T, 2) logits of each row. Rows of one padded length alone share a batch, so that none depends on others."""
        lengths = [min(-(-len(row.tokens) // MULTIPLE) * MULTIPLE, self._most) for row in rows]
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        shapes = [(length, length == len(row.tokens)) for length, row in zip(lengths, rows, strict=True)]
        for shape in sorted(set(shapes)):
            members = [number for number, own in enumerate(shapes) if own == shape]
            size = max(1, BATCH_TOKENS // shape[0])
            for first in range(0, len(members), size):
                part = members[first : first + size]
                batch = self._batch([rows[number] for number in part], shape[0])
                hidden = self._loss.output(self._model, batch).hidden
                logits = self._head.logits(getattr(self._model, NAME), hidden, batch).cpu().numpy()  # type: ignore[attr-defined]
                found = [logits[part.index(number)] if number in part else each for number, each in enumerate(found)]
        return found

    def _batch(self, rows: Sequence[_Row], length: int) -> Batch:
        inputs = torch.full((len(rows), length), pad_token(self._tokenizer))
        real, types = torch.zeros(len(rows), length), torch.zeros(len(rows), length, dtype=torch.int64)
        for number, row in enumerate(rows):
            inputs[number, : len(row.tokens)] = torch.from_numpy(row.tokens.astype(np.int64))
            real[number, : len(row.tokens)] = 1
            types[number, row.passage.start : len(row.tokens)] = 1
        batch = Batch(
            inputs,
            torch.zeros(len(rows), 1, dtype=torch.int64),
            torch.ones(len(rows), 1),
            torch.full((len(rows),), -1),
            encoder_weights=real,
            segment_ids=types if self._encodes else None,
        )
        return batch.to(next(self._model.parameters()).device)

    def _answer(self, passage: str, rows: Sequence[_Row], scores: Sequence[np.ndarray]) -> str:
        """The text of the best span over all windows; "" where none is better (Devlin et al. 2019, section 4.3)."""
        best, place, nowhere = -np.inf, (0, 0), np.inf
        for row, logits in zip(rows, scores, strict=True):
            nowhere = min(nowhere, float(logits[row.nowhere].sum()))
            own = best_span(logits[row.passage.start : row.passage.stop], self._settings.max_answer_length)
            if own is not None and own[0] > best:
                best, place = own[0], (int(row.spans[own[1], 0]), int(row.spans[own[2], 1]))
        if self._settings.unanswerable and nowhere - best > self._settings.null_threshold:
            return ""
        return passage.encode()[slice(*place)].decode(errors="ignore").strip()


def best_span(logits: np.ndarray, most: int) -> tuple[float, int, int] | None:
    """Score, first and last token of the span of at most so many tokens with the greatest sum of both ends' logits.

    Args:
        logits: (P, 2).
    """
    if not len(logits):
        return None
    sums = logits[:, 0].astype(np.float64)[:, None] + logits[:, 1].astype(np.float64)
    places = np.arange(len(logits))
    apart = places - places[:, None]
    sums[(apart < 0) | (apart >= most)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), int(start), int(end)
