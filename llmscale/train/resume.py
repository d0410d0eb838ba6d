"""Where a run continues: its newest intact checkpoint, found and verified by all ranks together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from llmscale.checkpoint import Checkpoint, CorruptCheckpoint, find_checkpoints
from llmscale.engine.distributed import broadcast_object, gather_objects
from llmscale.engine.engine import Engine
from llmscale.engine.optimizers import adafactor
from llmscale.parallel.shards import Shard
from llmscale.train.run_directory import RunDirectory


@dataclass(frozen=True)
class Resume:
    """What a run continues with; the defaults are a fresh start."""

    checkpoint: Checkpoint | None = None
    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    """Time that the steps so far took."""
    cursor: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    """Why newer checkpoints were passed over, a sentence each."""


def find_resume(run: RunDirectory) -> Resume:
    """The newest checkpoint of the run whose every file has its recorded size and SHA-256.

    Each rank verifies its share of the files; a checkpoint counts only when all shares are intact.
    """
    damaged: list[str] = []
    candidates = broadcast_object(find_checkpoints(run.checkpoints) if dist.get_rank() == 0 else None)
    for path in candidates:
        problem = next((found for found in gather_objects(_problem(path)) if found), None)
        if problem is None:
            checkpoint = Checkpoint(path)
            state = checkpoint.manifest
            return Resume(
                checkpoint,
                state.step,
                state.samples,
                int(state.progress["tokens"]),
                int(state.progress["skipped_steps"]),
                float(state.progress["seconds"]),
                checkpoint.cursor(),
                damaged,
            )
        damaged.append(problem)
    return Resume(damaged=damaged)


def _problem(path: Any) -> str | None:
    try:
        Checkpoint(path).verify(share=(dist.get_rank(), dist.get_world_size()))
    except CorruptCheckpoint as error:
        return str(error)
    return None


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load weights and optimizer state into the engine, whatever layout wrote them."""

    def read(name: str, kind: str, part: Shard, start: int, end: int) -> torch.Tensor:
        stored = checkpoint.kinds(name)
        if kind == adafactor.WHOLE and kind not in stored and adafactor.ROWS in stored:
            # Until version 0.1 the biases of experts, a stack, were kept as if they were a matrix.
            rows, columns = (checkpoint.full(name, statistic) for statistic in (adafactor.ROWS, adafactor.COLUMNS))
            whole = adafactor.second_moments(rows, columns)
            own = whole[tuple(slice(low, low + size) for low, size in zip(part.offsets, part.sizes, strict=True))]
            return own.reshape(-1)[start:end]
        return checkpoint.read(name, kind, part.offsets, part.sizes, start, end, shape=part.shape)

    engine.load_state(read, checkpoint.manifest.optimizer)
