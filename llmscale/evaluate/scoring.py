"""From requests to records, on any number of ranks, in the order of the items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.reading.item import Item
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import pad_token
from llmscale.config import ModelConfig
from llmscale.distributed.process_group import gather_to_lead
from llmscale.evaluate.artefact import Answer, Record
from llmscale.evaluate.batches import RowBatch, batches_of
from llmscale.evaluate.placed import Scoring
from llmscale.evaluate.scorers.rows import Place, Request, Row

WINDOW = 256
"""Items whose rows are batched together and whose records are written at once: enough for full batches, and no more
than that is lost when an evaluation is killed."""
BATCH_TOKENS = 4096
"""Tokens of a forward pass, about."""


@dataclass(frozen=True)
class Asked:
    """An item of a task and what is asked about it."""

    item: Item
    request: Request


class RowScorer:
    """Scores rows on all ranks of a layout. All must call it together, with the same rows."""

    def __init__(
        self,
        scoring: Scoring,
        model: ModelConfig,
        tokenizer: Tokenizer,
        tokens: int = BATCH_TOKENS,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            tokens: of a forward pass, about; no score depends on it.
            before: called ahead of each forward pass, equally often on all ranks.
        """
        self._scoring = scoring
        self._before = before
        self._model = model
        self._pad = pad_token(tokenizer)
        self._tokens = tokens

    def scores(self, rows: Sequence[Row]) -> list[torch.Tensor] | None:
        """Of each row (2, targets): log-probabilities in nats, and 1 where no token is more probable; on rank 0, None
        on the others."""
        grid = self._scoring.grid
        mine: dict[int, torch.Tensor] = {}
        batches = list(batches_of(rows, self._model, self._pad, self._tokens))
        for first in range(0, len(batches), grid.data):
            self._before()
            # Ranks that share weights wait for each other: where there is no batch left, one scores the first again.
            place = first + grid.coordinate("data")
            each = batches[place] if place < len(batches) else batches[0]
            scores = self._scoring.score(each.batch)
            if grid.has_scores and place < len(batches):
                mine |= _by_row(each, scores)
        gathered = [mine] if grid.world_size == 1 else gather_to_lead(mine)
        if gathered is None:
            return None
        found = {number: scores for share in gathered for number, scores in share.items()}
        return [found[number][:, : len(row.targets)] for number, row in enumerate(rows)]


def _by_row(batch: RowBatch, scores: torch.Tensor) -> dict[int, torch.Tensor]:
    return {number: scores[:, place].clone() for place, number in enumerate(batch.numbers)}


def records_of(
    asked: Sequence[Asked],
    scorer: RowScorer,
    window: int = WINDOW,
    progress: Callable[[int], None] = lambda items: None,
) -> Iterator[list[Record]]:
    """Records of items, some at a time and in their order; on rank 0, while the others get empty lists.

    Args:
        window: items at a time.
        progress: is told how many items are done.

    Raises:
        UserError: a score that is no number.
    """
    for first in range(0, len(asked), window):
        some = asked[first : first + window]
        rows, places = _once([row for each in some for row in each.request.rows])
        scores = scorer.scores(rows)
        if scores is None:
            yield []
            continue
        found = iter([scores[number][:, own] for number, own in places])
        progress(len(some))
        yield [_record(each, list(itertools.islice(found, len(each.request.rows)))) for each in some]


def _once(rows: Sequence[Row]) -> tuple[list[Row], list[tuple[int, slice]]]:
    """Rows that read the same as one, as items have them whose texts follow each other; and of each row that was given
    the number of that one, and which of its targets are its own."""
    numbers: dict[tuple[object, ...], int] = {}
    unique: list[Row] = []
    places = []
    for row in rows:
        number = numbers.setdefault(row.reads, len(unique))
        if number == len(unique):
            unique.append(replace(row, targets=()))
        first = len(unique[number].targets)
        unique[number] = unique[number].asked(row.targets)
        places.append((number, slice(first, first + len(row.targets))))
    return unique, places


def _record(asked: Asked, scores: Sequence[torch.Tensor]) -> Record:
    item, request = asked.item, asked.request
    answers = []
    for read, places in request.answers:
        log_probabilities, greedy = _at(places, scores, item)
        answers.append(
            Answer(
                ids=list(read.tokens),
                spans=list(read.spans),
                log_probabilities=log_probabilities,
                greedy=[value > 0 for value in greedy],
                bytes=len(read.text.encode()),
                characters=len(read.text),
            )
        )
    neutral = [sum(_at(places, scores, item)[0]) for places in request.neutral]
    return Record.of(item, request.flags, answers=answers, neutral=neutral)


def _at(places: Sequence[Place], scores: Sequence[torch.Tensor], item: Item) -> tuple[list[float], list[float]]:
    found = torch.stack([scores[row][:, target] for row, target in places], dim=1)
    if not bool(found.isfinite().all()):
        raise UserError(
            f"the model gives item {item.number} a log-probability that is no finite number; look for weights that are"
            f" not finite by `llmscale checkpoint verify`, or score in fp32"
        )
    log_probabilities, greedy = found.tolist()
    return log_probabilities, greedy
