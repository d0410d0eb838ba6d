"""The loop: a step after the other, and callbacks after each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.loader import TrainLoader
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, all_reduce_wrapping
from llmscale.engine.engine import Engine, accumulation
from llmscale.report.goodput import COMPUTE, DATA, EVALUATION
from llmscale.train.batch_size import batch_at
from llmscale.train.callbacks import Callback
from llmscale.train.signals import Phase, PreemptionFlag
from llmscale.train.silent_errors import look_twice
from llmscale.train.state import StepResult, TrainState
from llmscale.train.time_account import TimeAccount

READING, COUNTING, COMPUTING, SUMMING, AFTER_STEP = range(5)
"""Places of the phases of a step, in their order; callbacks follow."""


class Trainer:
    """One attempt of a run: steps from where the newest checkpoint left off to `train.steps`, or to a signal."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        loader: TrainLoader,
        state: TrainState,
        flag: PreemptionFlag,
        account: TimeAccount,
    ) -> None:
        self.config = config
        self.engine = engine
        self.loader = loader
        self.state = state
        self.flag = flag
        self.account = account

    def train(self, callbacks: Sequence[Callback]) -> None:
        """Run to the last step, or to the first step after a preemption signal reached any rank."""
        state, account = self.state, self.account
        account.started()
        for place, callback in enumerate(callbacks, start=AFTER_STEP):
            self._enter(callback, place, "the start of ")
            with account.spending(callback.activity):
                callback.on_start(state)
        while not state.finished and not state.preempted:
            result = self.one_step()
            account.spend(DATA, result.data_seconds)
            account.spend(COMPUTE, result.step_seconds - result.data_seconds)
            for place, callback in enumerate(callbacks, start=AFTER_STEP):
                self._enter(callback, place)
                with account.spending(callback.activity):
                    callback.on_step(state, result)
        for callback in callbacks:
            callback.on_stop(state)
        self.flag.enter(Phase.SAVING)
        for place, callback in enumerate(reversed(callbacks), start=AFTER_STEP + len(callbacks)):
            self._enter(callback, place, "the end of ")
            with account.spending(callback.activity):
                callback.on_end(state)
        # A signal that came while the last step was saved: what is left to do can take long.
        state.preempted = state.preempted or all_reduce_sum([float(self.flag.poll())])[0] > 0

    def _enter(self, callback: Callback, place: int, when: str = "") -> None:
        self.state.enter(f"{when}{type(callback).__name__}", place, callback.activity == EVALUATION)

    def one_step(self) -> StepResult:
        """Take the samples of the next step and train on them; collective."""
        started = time.perf_counter()
        state, grid = self.state, self.engine.grid
        state.in_step = True
        state.enter("reading its samples", READING)
        left_out = self._leave_out()
        global_batch = batch_at(self.config.train, state.samples)
        batch, ledger_sum = self._take(global_batch // grid.data)
        data_seconds = time.perf_counter() - started
        state.enter("adding up the targets of all ranks", COUNTING)
        # Ranks that share a sample have all of it; one of them counts it.
        own = [count * grid.is_sample_leader for count in self.engine.counts(batch)]
        *counts, signals = all_reduce_sum([*own, float(self.flag.poll())])
        state.preempted = signals > 0
        targets = counts[0]
        sums, grad_norm = [0.0] * len(counts), 0.0
        if targets:
            micro, _ = accumulation(self.config.train, grid.data, global_batch)
            state.enter("forward, backward pass and update", COMPUTING)
            micro_batches = self.engine.with_shared(self.engine.cut(batch, micro), targets, all_reduce_sum)
            self._look_twice(micro_batches[0])
            state.enter("forward, backward pass and update", COMPUTING)
            sums, grad_norm = self.engine.train_step(micro_batches, state.step, counts)
        state.enter("adding up the losses of all ranks", SUMMING)
        sums = all_reduce_sum(sums)
        ledger_sum = all_reduce_wrapping(ledger_sum if grid.is_sample_leader else 0)
        skipped = not targets or not 0 <= grad_norm < float("inf")
        state.step, state.in_step = state.step + 1, False
        state.samples += global_batch
        state.tokens += int(targets)
        state.skipped_steps += skipped
        self.flag.stepped()
        step_seconds = time.perf_counter() - started
        state.seconds += step_seconds
        return StepResult(
            step=state.step,
            losses={
                name: total / count if count else 0.0
                for name, total, count in zip(self.engine.terms, sums, counts, strict=True)
            },
            grad_norm=grad_norm,
            lr=self.engine.learning_rate(state.step - 1),
            tokens=int(targets),
            data_seconds=data_seconds,
            forward_seconds=self.engine.forward_timer.take(),
            step_seconds=step_seconds,
            skipped=skipped,
            samples=global_batch,
            ledger_sum=ledger_sum,
            left_out=left_out,
        )

    def _look_twice(self, batch: Batch) -> None:
        every = self.config.recovery.check_every
        if every and (self.state.step + 1) % every == 0:
            self.state.enter("computing a micro batch twice", COMPUTING)
            look_twice(self.engine, batch, self.state.step + 1)
            self.state.checked += 1

    def _leave_out(self) -> tuple[tuple[int, int, int], ...]:
        """Pass by the samples that come next and are to be skipped: ranges of them, with the ledger's sum."""
        state, grid, ranges = self.state, self.engine.grid, []
        for skip in state.skips:
            if not skip.first <= state.samples <= skip.last:
                continue
            first, total = state.samples, 0
            while state.samples <= skip.last:
                count = min(skip.last + 1 - state.samples, batch_at(self.config.train, state.samples))
                total += self._take(count // grid.data)[1]
                state.samples += count
                state.beat()
            ranges.append((first, skip.last, all_reduce_wrapping(total % 2**64 if grid.is_sample_leader else 0)))
        return tuple(ranges)

    def _take(self, samples: int) -> tuple[Batch, int]:
        try:
            return self.loader.take(samples)
        except UserError as error:
            # Only this rank met it: it must speak for itself.
            error.everywhere = False
            raise
