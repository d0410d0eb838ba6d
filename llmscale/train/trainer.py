"""The trainer: build everything, then loop."""

from __future__ import annotations

import time
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.finite.heldout import EvaluationSet
from data_pipeline.ledger import LedgerWriter
from data_pipeline.loader import TrainLoader
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import Tokenizer
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config import RunConfig, identity
from llmscale.distributed.process_group import World, all_reduce_sum, all_reduce_wrapping, gather_objects
from llmscale.engine.engine import Engine, accumulation
from llmscale.evaluate.heldout import evaluate
from llmscale.objectives import Loss
from llmscale.parallel.grid import RankGrid
from llmscale.train.batch_size import batch_at
from llmscale.train.callbacks import Callback, StepResult
from llmscale.train.inherited import drawn_tensors
from llmscale.train.resume import Resume
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import Phase, PreemptionFlag


class Trainer:
    """One attempt of a run: steps from where the newest checkpoint left off to `train.steps`, or to a signal."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        world: World,
        grid: RankGrid,
        loss: Loss,
        engine: Engine,
        loader: TrainLoader,
        evaluation_set: EvaluationSet | None,
        writer: CheckpointWriter,
        ledger: LedgerWriter | None,
        tokenizer: Tokenizer,
        flag: PreemptionFlag,
        resume: Resume,
        attempt: int,
    ) -> None:
        self.config = config
        self.run = run
        self.world = world
        self.grid = grid
        self.loss = loss
        self.engine = engine
        self.loader = loader
        self.evaluation_set = evaluation_set
        self.writer = writer
        self.ledger = ledger
        self.tokenizer = tokenizer
        self.step = resume.step
        self.samples = resume.samples
        """Samples of the global order that the finished steps consumed."""
        self.tokens = resume.tokens
        self.skipped_steps = resume.skipped_steps
        self.seconds = resume.seconds
        self.evaluation: dict[str, Any] | None = None
        self.preempted = False
        self.diverging = False
        """The last steps were skipped, so that no checkpoint should take the place of an earlier one."""
        self.flag = flag
        self.resume = resume
        self.attempt = attempt

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.step >= self.config.train.steps

    def train(self, callbacks: list[Callback]) -> None:
        """Run to the last step, or to the first step after a preemption signal reached any rank."""
        for callback in callbacks:
            callback.on_start(self)
        while not self.finished and not self.preempted:
            result = self.one_step()
            for callback in callbacks:
                callback.on_step(self, result)
        for callback in callbacks:
            callback.on_stop(self)
        self.flag.enter(Phase.SAVING)
        for callback in reversed(callbacks):
            callback.on_end(self)
        # A signal that came while the last step was saved: what is left to do can take long.
        self.preempted = self.preempted or all_reduce_sum([float(self.flag.poll())])[0] > 0

    def one_step(self) -> StepResult:
        """Take the samples of the next step, train on them, and record it; collective."""
        started = time.perf_counter()
        global_batch = batch_at(self.config.train, self.samples)
        batch, ledger_sum = self._take(global_batch)
        data_seconds = time.perf_counter() - started
        # Ranks that share a sample have all of it; one of them counts it.
        own = [count * self.grid.leads for count in self.loss.counts(batch)]
        *counts, signals = all_reduce_sum([*own, float(self.flag.poll())])
        self.preempted = signals > 0
        targets = counts[0]
        sums, grad_norm = [0.0] * len(counts), 0.0
        if targets:
            micro, _ = accumulation(self.config, self.grid.data, global_batch)
            sums, grad_norm = self.engine.train_step(batch.split(micro), self.step, counts)
        sums = all_reduce_sum(sums)
        ledger_sum = all_reduce_wrapping(ledger_sum if self.grid.leads else 0)
        skipped = not targets or not 0 <= grad_norm < float("inf")
        self.step += 1
        self.samples += global_batch
        self.tokens += int(targets)
        self.skipped_steps += skipped
        self.flag.stepped()
        self._record_ledger(ledger_sum, global_batch)
        step_seconds = time.perf_counter() - started
        self.seconds += step_seconds
        return StepResult(
            step=self.step,
            losses={
                name: total / count if count else 0.0
                for name, total, count in zip(self.loss.terms, sums, counts, strict=True)
            },
            grad_norm=grad_norm,
            lr=self.engine.learning_rate(self.step - 1),
            tokens=int(targets),
            data_seconds=data_seconds,
            step_seconds=step_seconds,
            skipped=skipped,
            ledger_sum=ledger_sum,
        )

    def _record_ledger(self, ledger_sum: int, global_batch: int) -> None:
        if self.ledger is not None:
            self.ledger.write(self.step, self.samples - global_batch, self.samples - 1, ledger_sum)
        if self.step % self.config.logging.ledger_snapshot_interval == 0:
            cursors = gather_objects(self.loader.cursor())
            if self.ledger is not None:
                self.ledger.snapshot(merge_cursors(cursors))

    def _take(self, global_batch: int) -> tuple[Batch, int]:
        try:
            return self.loader.take(global_batch // self.grid.data)
        except UserError as error:
            # Only this rank met it: it must speak for itself.
            error.everywhere = False
            raise

    def evaluate(self, max_samples: int | None) -> dict[str, Any] | None:
        """Held-out figures over all ranks; None when a preemption signal came first, which ends the training too."""
        if self.finished:
            self.flag.enter(Phase.TRAINING)  # the last step is saved, so that a second signal may end this
        assert self.evaluation_set is not None
        figures = evaluate(
            self.engine.loss,
            self.evaluation_set,
            self.config.evaluation.batch,
            rank=self.grid.coordinate("data"),
            ranks=self.grid.data,
            reduce=all_reduce_sum,
            counted=self.grid.leads,
            max_samples=max_samples,
            stop=self.flag.poll,
        )
        self.preempted = self.preempted or figures is None
        return figures

    def save(self) -> None:
        """Write a checkpoint of this step in the background; training goes on once the state is copied."""
        extra = {
            "samples": self.samples,
            "progress": {"tokens": self.tokens, "skipped_steps": self.skipped_steps, "seconds": self.seconds},
            "optimizer": self.engine.counters,
            "schedule": {"lr": self.engine.learning_rate(self.step), "step": self.step},
            "config": self.config.model_dump(mode="json"),
            "identity": identity(self.config),
            # A step trains every head: the objective has the model's.
            "drawn": drawn_tensors(self.config, self.resume) if self.step == self.skipped_steps else [],
        }
        tokenizer = {path.name: path for path in sorted(self.run.tokenizer.iterdir())}
        self.writer.save(self.step, self.engine.state(), extra, self.loader.cursor(), tokenizer)
