"""What happens beside training: logging, evaluation, checkpoints. Each is told of every step and of the end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.base.records import RecordWriter, read_records
from llmscale.distributed.process_group import broadcast_object, gather_objects

if TYPE_CHECKING:
    from llmscale.train.progress import Progress
    from llmscale.train.trainer import Trainer


COUNTS = ("sources", "dropped")
"""What a row of metrics.jsonl may hold by label: samples of each source, and documents that this rank's reading dropped
or mended, by reason."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all ranks."""

    step: int
    """Steps done, this one included."""
    losses: dict[str, float]
    """Mean of each term of the loss over the global batch: `loss` per target token, in nats, and the others."""
    grad_norm: float
    """Norm of the gradient before clipping; -1 where it was not finite."""
    lr: float
    tokens: int
    """Target tokens of the global batch."""
    data_seconds: float
    """Time that this rank waited for data."""
    step_seconds: float
    skipped: bool
    """The global batch had no target, or its gradient was not finite."""
    ledger_sum: int
    """Of the global batch, as the ledger has it."""

    @property
    def loss(self) -> float:
        """Mean loss per target token of the global batch, in nats."""
        return self.losses["loss"]


class Callback:
    """Told of every step, in the order logging, evaluation, checkpoints, so that a checkpoint follows all records of
    its step; and of the end in the reverse order, so that the last checkpoint is safe before a long evaluation."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this attempt, on every rank."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After each step, on every rank."""

    def on_stop(self, trainer: Trainer) -> None:
        """After the last step of this attempt, on every rank, also when preempted, and before any `on_end`."""

    def on_end(self, trainer: Trainer) -> None:
        """At the end of this attempt, on every rank; also when preempted."""


class MetricsLogger(Callback):
    """Rows of metrics.jsonl, the progress bar, and experiment trackers; rank 0 writes."""

    def __init__(self, writer: RecordWriter | None, progress: Progress, trackers: list[Any], interval: int) -> None:
        self._writer = writer
        self._progress = progress
        self._trackers = trackers
        self._interval = interval
        self._since: list[StepResult] = []
        self._started = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._started = time.perf_counter()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self._since.append(result)
        if result.step % self._interval == 0 or result.step == trainer.config.train.steps:
            self._write(trainer, result)
        self._progress.step(result)

    def _write(self, trainer: Trainer, result: StepResult) -> None:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        tokens = sum(each.tokens for each in self._since)
        row: dict[str, Any] = {
            "step": result.step,
            **result.losses,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "samples": trainer.samples,
            "tokens": trainer.tokens,
            "tokens_per_second": tokens / seconds,
            "data_seconds": sum(each.data_seconds for each in self._since) / len(self._since),
            "step_seconds": sum(each.step_seconds for each in self._since) / len(self._since),
            "skipped_steps": trainer.skipped_steps,
        }
        sources = trainer.loader.samples.sources(trainer.samples)
        if len(sources) > 1:
            row["sources"] = sources
        if trainer.loader.dropped:
            row["dropped"] = dict(sorted(trainer.loader.dropped.items()))
        self._since.clear()
        if self._writer is not None:
            self._writer.write(row)
        for tracker in self._trackers:
            numbers = {key: value for key, value in row.items() if key not in ("step", *COUNTS)}
            counts = {f"{name}/{label}": count for name in COUNTS for label, count in row.get(name, {}).items()}
            tracker.log({**numbers, **counts}, step=result.step)


class Evaluator(Callback):
    """Held-out loss every so many steps; all ranks take part."""

    def __init__(self, writer: RecordWriter | None, progress: Progress, trackers: list[Any], interval: int) -> None:
        self._writer = writer
        self._progress = progress
        self._trackers = trackers
        self._interval = interval
        self._done: dict[str, Any] | None = None
        """The evaluation of the step that this attempt continues from, where it is in the records."""

    def on_start(self, trainer: Trainer) -> None:
        # A preemption signal may have cut the evaluation of the step short that the run continues from.
        rows = [row for row in read_records(trainer.run.metrics) if row["step"] == trainer.step]
        held = (row["evaluation"] for row in rows if isinstance(row.get("evaluation"), dict))
        self._done = broadcast_object(next(held, None))
        if trainer.step and self._done is None:
            self._evaluate_if_due(trainer)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self._evaluate_if_due(trainer)

    def _evaluate_if_due(self, trainer: Trainer) -> None:
        if self._interval and trainer.step % self._interval == 0 and not trainer.finished:
            self._evaluate(trainer, trainer.config.evaluation.max_samples)

    def on_end(self, trainer: Trainer) -> None:
        if not trainer.finished:
            return
        if trainer.step == trainer.resume.step and self._done and None not in self._done.values():
            trainer.evaluation = self._done  # a start that was ended after it
        else:
            trainer.evaluation = self._evaluate(trainer, None)

    def _evaluate(self, trainer: Trainer, max_samples: int | None) -> dict[str, Any] | None:
        if trainer.evaluation_set is None:
            return None
        figures = trainer.evaluate(max_samples)
        if figures is None:
            return None
        if self._writer is not None:
            self._writer.write({"step": trainer.step, "evaluation": figures})
        for tracker in self._trackers:
            tracker.log({f"evaluation/{key}": value for key, value in figures.items()}, step=trainer.step)
        self._progress.evaluated(trainer.step, figures)
        return figures


class Checkpointer(Callback):
    """A checkpoint every so many steps, at the end, and when preempted."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._last = -1

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self._interval and result.step % self._interval == 0 and not trainer.diverging:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._last != trainer.step and trainer.step > trainer.resume.step:
            self._save(trainer)
        trainer.writer.wait()
        # No rank may report the run as done before every rank's part is on disk.
        gather_objects(None)

    def _save(self, trainer: Trainer) -> None:
        trainer.save()
        self._last = trainer.step
