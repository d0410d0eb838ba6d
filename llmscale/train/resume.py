"""Where a run continues: its newest intact checkpoint, found and verified by all ranks together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.stream.cursor import require_form
from llmscale.checkpoint import Checkpoint, CorruptCheckpoint
from llmscale.checkpoint.members import Identity, why_stranger
from llmscale.config import RunConfig, identity
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import broadcast_object, gather_objects
from llmscale.engine.engine import Engine
from llmscale.engine.optimizers import adafactor
from llmscale.slices.tensor_slice import TensorSlice
from llmscale.train.recoveries import Recent, Skip, drop_outdated, read_skips, recent_of, skips_of
from llmscale.train.run_directory import RunDirectory


@dataclass(frozen=True)
class Best:
    """The best value of a figure so far."""

    metric: str
    value: float
    step: int
    since: int = 0
    """Evaluations since then, at `evaluation.interval`."""
    compared: int = 0
    """The newest step that was compared with it."""


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
    best: Best | None = None
    """Of the figure that `evaluation.best` names."""
    skips: list[Skip] = field(default_factory=list)
    """Samples that no step is trained on."""
    recent: deque[Recent] = field(default_factory=deque)
    """The newest steps before it."""
    skipped: list[str] = field(default_factory=list)
    """Why newer checkpoints were passed over, a sentence each."""


def find_resume(run: RunDirectory, config: RunConfig, from_scratch: bool = False) -> Resume:
    """The newest checkpoint of the run whose every file has its recorded size and SHA-256 and holds finite numbers.

    Each rank verifies its share of the files; a checkpoint counts only when all shares are intact.

    Args:
        from_scratch: begin at step 0 where the run has lost its checkpoints; what there is of it is set aside.

    Raises:
        UserError: the run has lost its checkpoints.
    """
    skipped: list[str] = []

    def obey_decisions() -> list[Skip]:
        skips = read_skips(run.recoveries)
        if skips:
            drop_outdated(run.checkpoints, identity(config), skips)
        return skips

    decided = on_rank_zero(obey_decisions)
    candidates = broadcast_object(run.candidates() if dist.get_rank() == 0 else None)
    for path in candidates:
        problem = next((found for found in gather_objects(_problem(path, identity(config))) if found), None)
        if problem is None:
            found = resume_from(Checkpoint(path), skipped)
            return replace(found, skips=sorted({*found.skips, *decided}))
        skipped.append(problem)

    def start_from_scratch() -> list[str]:
        if not from_scratch:
            run.require_checkpoint(skipped)
        return [f"what there was of {run.path} is now in {run.set_aside()}"] if run.saved else []

    set_aside = on_rank_zero(start_from_scratch)
    return Resume(skips=[] if set_aside else decided, skipped=skipped + set_aside)


def resume_from(checkpoint: Checkpoint, skipped: list[str]) -> Resume:
    """What a run continues with after a checkpoint.

    Raises:
        CorruptCheckpoint: it does not say what a training loop needs, whatever its digests say.
    """
    state = checkpoint.manifest
    try:
        counts = {key: state.progress[key] for key in ("tokens", "skipped_steps", "seconds")} | {
            "steps": state.optimizer["steps"]
        }
    except KeyError as error:
        raise CorruptCheckpoint(f"{checkpoint.path}: its manifest lacks the number of {error.args[0]}") from None
    for key, value in counts.items():
        whole = type(value) is int or (key == "seconds" and type(value) is float)
        if not whole or not 0 <= value < 2**63:
            raise CorruptCheckpoint(f"{checkpoint.path}: its manifest has {value!r} for the number of {key}")
    cursor = checkpoint.cursor()
    try:
        require_form(cursor)
        skips, recent = skips_of(state.progress), recent_of(state.progress)
    except ValueError as error:
        raise CorruptCheckpoint(f"{checkpoint.path}: {error}") from None
    return Resume(
        checkpoint,
        state.step,
        state.samples,
        counts["tokens"],
        counts["skipped_steps"],
        float(counts["seconds"]),
        cursor,
        _best(checkpoint),
        skips,
        recent,
        skipped,
    )


def _best(checkpoint: Checkpoint) -> Best | None:
    kept = checkpoint.manifest.progress.get("best")
    try:
        return None if kept is None else Best(**kept)
    except TypeError:
        raise CorruptCheckpoint(f"{checkpoint.path}: its manifest has {kept!r} for the best evaluation") from None


def _problem(path: Path, own: Identity) -> str | None:
    try:
        checkpoint = Checkpoint(path)
        stranger = why_stranger(path, checkpoint.manifest, own)
        if stranger is None:
            checkpoint.verify(share=(dist.get_rank(), dist.get_world_size()))
            resume_from(checkpoint, [])
    except CorruptCheckpoint as error:
        return str(error)
    return stranger


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load weights and optimizer state into the engine, whatever layout wrote them."""

    def read(name: str, kind: str, part: TensorSlice) -> torch.Tensor:
        stored = checkpoint.kinds(name)
        if kind == adafactor.WHOLE and kind not in stored and adafactor.ROWS in stored:
            # Until version 0.1 the biases of experts, a stack, were kept as if they were a matrix.
            rows, columns = (checkpoint.full(name, statistic) for statistic in (adafactor.ROWS, adafactor.COLUMNS))
            return part.of(adafactor.second_moments(rows, columns))
        return checkpoint.read(name, part, kind)

    engine.load_state(read, checkpoint.manifest.optimizer)
