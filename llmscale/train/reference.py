"""Log-probabilities of a reference model: computed once before the training starts, kept in the run's cache."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import RecordWriter, read_every_record
from data_pipeline.base.terminal import tell
from data_pipeline.batch import Batch, make_batch
from data_pipeline.finite.heldout import EvaluationSet
from data_pipeline.finite.samples import IndexedSamples
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.preference import NAME
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import RunConfig
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import World, all_reduce_sum
from llmscale.evaluate.placed import Source, place_on_ranks
from llmscale.objectives import model_side
from llmscale.objectives.preference_loss import REFERENCE, answer_sums, scored
from llmscale.parallel.grid import RankGrid
from llmscale.train.initial import open_model, require_same_model
from llmscale.train.resume import Resume
from llmscale.train.run_directory import RunDirectory

_ROUND = 16
"""Batches whose values are written down at a time."""
Values = dict[str, tuple[float, float]]
"""Log-probabilities of both answers by the digest of a sample's row."""


class References:
    """What the reference gives the answers of every sample."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def annotate(self, batch: Batch) -> Batch:
        """The batch with `labels[REFERENCE]`: (B, 2) float64, NaN for fill."""
        nothing = (math.nan, math.nan)
        found = [
            nothing if number < 0 else self._values[key]
            for number, key in zip(batch.sample_ids.tolist(), sample_keys(batch), strict=True)
        ]
        return replace(batch, labels={**batch.labels, REFERENCE: torch.tensor(found, dtype=torch.float64)})


class Data:
    """The samples that a run trains and is evaluated on."""

    def __init__(self, tokenizer: Tokenizer, loader: TrainLoader, held_out: EvaluationSet | None) -> None:
        self.tokenizer = tokenizer
        self.loader = loader
        self.held_out = held_out

    def samples(self, count: int) -> Iterator[tuple[str, int]]:
        """The digest and the place of each of the first `count` samples and of the held-out ones: its number, or ~index
        in the held-out set."""
        samples = self.loader.samples
        assert isinstance(samples, IndexedSamples), "refused by llmscale.layout"
        trained = samples.distinct(count)
        held = [~index for index in range(len(self.held_out) if self.held_out is not None else 0)]
        for some in _parts(trained, held, size=_ROUND):
            yield from zip(sample_keys(self.batch(some)), some, strict=True)

    def batch(self, places: list[int]) -> Batch:
        """Samples by place, all of them of one of the two sets."""
        if places[0] >= 0:
            return make_batch(self.loader.samples.make(places).arrays, np.array(places))
        assert self.held_out is not None
        return self.held_out.batch([~place for place in places])


def _parts(*lists: list[Any], size: int) -> Iterator[list[Any]]:
    """Each list in parts of at most so many."""
    for each in lists:
        for first in range(0, len(each), size):
            yield each[first : first + size]


def sample_keys(batch: Batch) -> list[str]:
    """A digest of what each row has the model read and predict."""
    rows = torch.cat([batch.inputs, batch.targets, batch.labels[NAME]], dim=1).numpy()
    return [xxhash.xxh3_128_hexdigest(row.tobytes()) for row in rows]


class _Plan(NamedTuple):
    """What there is, and what is left to do."""

    values: Values
    missing: list[tuple[str, int]]
    """The digest and the place of each sample that has none: its number, or ~index in the held-out set."""
    weights: str
    """16 characters of a digest of the reference's weights."""
    checkpoint: str
    """Of the reference; nothing where all is there."""


def attach_references(
    config: RunConfig, run: RunDirectory, world: World, grid: RankGrid, data: Data, *, attempt: int, resume: Resume
) -> None:
    """Let the loader and the held-out set give each batch what the reference makes of it, computed now where that is
    not kept yet; collective. Nothing happens for an objective that compares with none.

    Args:
        config: with the number of steps that `train.epochs` comes to.
        resume: what the run goes on with. From a checkpoint the reference must be what it was; samples that are skipped
            are followed by as many others.

    Raises:
        UserError: the reference cannot be read, has another tokenizer or shape, or is not what it was.
    """
    named = model_side(config.objective).reference(config)
    if named is None:
        return
    option, path = named
    name = hashlib.sha256(f"{path} {data.tokenizer.digest} {config.engine.dtype}".encode()).hexdigest()[:16]
    file = run.cache / f"reference-{name}.jsonl"
    plan = on_rank_zero(lambda: _planned(config, data, file, option, path, resume))
    values = dict(plan.values)
    if plan.missing:
        if world.rank == 0:
            tell(f"log-probabilities of {len(plan.missing):,} samples by {plan.checkpoint}, kept in {file}")
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(RecordWriter(file, attempt)) if world.rank == 0 else None
            for found in _computed(config, world, grid, data, plan):
                values |= found
                for key, pair in found.items() if writer else ():
                    assert writer is not None
                    writer.write({"step": 0, "sample": key, "values": pair, "weights": plan.weights})
    annotate = References(values).annotate
    data.loader.annotate = annotate
    if data.held_out is not None:
        data.held_out.annotate = annotate


def _planned(config: RunConfig, data: Data, file: Path, option: str, path: str, resume: Resume) -> _Plan:
    """What of `file` counts, and what is missing; on rank 0."""
    rows = [row for row in read_every_record(file) if _is_whole(row)]
    skipped = sum(skip.last + 1 - skip.first for skip in resume.skips)
    needed = dict(data.samples(config.train.steps * config.train.global_batch + skipped))
    weights = rows[-1]["weights"] if resume.checkpoint is not None and rows else None
    known = {row["sample"] for row in rows if row["weights"] == weights}
    if weights is not None and known >= needed.keys():
        # Nobody has to keep the reference for longer.
        return _Plan(_values(rows, weights), [], weights, "")
    checkpoint = open_model(path, data.tokenizer, option)
    require_same_model(config.model, config.model.vocabulary(data.tokenizer.vocab_size), checkpoint, option)
    now = Source.of_checkpoint(checkpoint).digest
    if weights not in (None, now):
        raise UserError(
            f"{option} {path} has other weights (digest {now}) than when the run began ({weights}), which compares with"
            f" them; name the checkpoint that it was, or start a new run"
        )
    values = _values(rows, now)
    missing = [(key, place) for key, place in needed.items() if key not in values]
    return _Plan(values, missing, now, str(checkpoint.path))


def _is_whole(row: dict[str, Any]) -> bool:
    pair = row.get("values")
    numbers = isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, float) for value in pair)
    return numbers and isinstance(row.get("sample"), str) and isinstance(row.get("weights"), str)


def _values(rows: list[dict[str, Any]], weights: str) -> Values:
    return {row["sample"]: tuple(row["values"]) for row in rows if row["weights"] == weights}


def _computed(config: RunConfig, world: World, grid: RankGrid, data: Data, plan: _Plan) -> Iterator[Values]:
    """What is missing, some at a time; every rank of `grid` runs equally many forward passes on samples of its own."""
    overrides = (
        f"parallel.pipeline={config.parallel.pipeline}",
        f"parallel.tensor={config.parallel.tensor}",
        f"parallel.sequence_parallel={str(config.parallel.sequence_parallel).lower()}",
        f"parallel.expert={config.parallel.expert}",
        f"engine.zero_stage={config.engine.zero_stage}",
        # Which it does not read, but ranks must be able to share.
        f"data.lanes={world.size}",
    )
    placed = place_on_ranks(plan.checkpoint, overrides, world, config.engine.dtype)
    size, own = config.evaluation.batch, grid.coordinate("data")
    share = size * grid.data
    try:
        sets = [[each for each in plan.missing if (each[1] < 0) == held] for held in (False, True)]
        for part in _parts(*sets, size=_ROUND * share):
            sums = torch.zeros(len(part), 2, dtype=torch.float64)
            for start in range(0, len(part), share):
                mine = part[start + own * size : start + (own + 1) * size]
                # A rank without samples of its own computes what does not count.
                batch = scored(data.batch([place for _, place in mine or part[:1]]))
                found = answer_sums(batch, placed.scoring.score(batch)[0])
                if mine and grid.has_scores:
                    sums[start + own * size :][: len(mine)] = found
            flat = all_reduce_sum(sums.flatten().tolist())
            pairs = zip(flat[::2], flat[1::2], strict=True)
            yield {key: pair for (key, _), pair in zip(part, pairs, strict=True)}
    finally:
        placed.close()
