"""Losses that jump: the run goes back and leaves out what it was trained on."""

from __future__ import annotations

import math
import statistics

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import warn
from llmscale.config import RunConfig, identity
from llmscale.config.recovery import SpikesConfig
from llmscale.distributed.agreement import on_rank_zero
from llmscale.train.batch_size import batch_at
from llmscale.train.callbacks.base import Callback
from llmscale.train.recoveries import Recent, RollBack, Skip, append_decision, checkpoint_before
from llmscale.train.saving import Saver
from llmscale.train.state import StepResult, TrainState

LEAST_DEVIATION = 0.01
"""Nats. What is learned by heart has losses so even that any step would else be a spike."""


class SpikeWatch(Callback):
    """Compares each loss with those before it. Every rank sees the same losses and so decides alike.

    Steps that were skipped, since their gradient was not finite or they had no target, say nothing here.
    """

    def __init__(self, config: RunConfig, saver: Saver, attempt: int, *, shown: bool) -> None:
        """`shown`: whether this rank tells the user."""
        self._config, self._saver, self._attempt, self._shown = config, saver, attempt, shown
        self._settings = config.recovery.spikes

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Raises:
        RollBack: the step is a spike, and what to skip is on record.
        UserError: it is one again, after `recovery.spikes.tries`, or no checkpoint is old enough.
        """
        settings = self._settings
        if settings is None:
            return
        loss = None if result.skipped or not math.isfinite(result.loss) else result.loss
        this = Recent(state.samples - result.samples, result.samples, f"{result.ledger_sum % 2**64:016x}", loss)
        losses = [each.loss for each in state.recent if each.loss is not None][-settings.window :]
        if loss is not None and len(losses) == settings.window:
            median, deviation = centre_and_deviation(losses)
            score = (loss - median) / deviation
            if score > settings.threshold:
                self._go_back(settings, state, result, this, (median, deviation, score))
        state.recent.append(this)
        while len(state.recent) > max(settings.window, settings.skip_before):
            state.recent.popleft()

    def _go_back(
        self,
        settings: SpikesConfig,
        state: TrainState,
        result: StepResult,
        this: Recent,
        figures: tuple[float, float, float],
    ) -> None:
        median, deviation, score = figures
        step, run = result.step, self._saver.run
        tries = sum(skip.step == step for skip in state.skips)
        what = (
            f"the loss of step {step}, {result.loss:.4f}, is {score:.1f} robust standard deviations above"
            f" {median:.4f}, the median of the {settings.window} steps before"
        )
        if tries >= settings.tries:
            raise UserError(
                f"{what}, after {tries} times that the run went back and skipped samples because of this step"
                f" (recovery.spikes.tries is {settings.tries}); lower optimizer.lr ({self._config.optimizer.lr:g}) or"
                f" optimizer.clip ({self._config.optimizer.clip:g}) in a new run, or raise recovery.spikes.skip_before,"
                f" skip_after or threshold"
            )
        before = list(state.recent)[len(state.recent) - min(settings.skip_before, len(state.recent)) :]
        seen = [*before, this]
        end = state.samples
        for _ in range(settings.skip_after):
            end += batch_at(self._config.train, end)
        skip = Skip(seen[0].first, end - 1, step)
        self._saver.wait()  # a checkpoint of before may still be on its way to the disk

        def record() -> int:
            target = checkpoint_before(run.checkpoints, identity(self._config), skip.first)
            if target is None and run.saved:
                raise UserError(
                    f"{what}, but no checkpoint is left of before sample {skip.first}, where"
                    f" recovery.spikes.skip_before ({settings.skip_before}) reaches to; lower it, or raise"
                    f" checkpoint.keep ({self._config.checkpoint.keep})"
                )
            row = {
                "step": step,
                "loss": result.loss,
                "median": median,
                "deviation": deviation,
                "score": score,
                "threshold": settings.threshold,
                "try": tries + 1,
                "first_sample": skip.first,
                "last_sample": skip.last,
                "ledger": [
                    {"first_sample": each.first, "last_sample": each.first + each.samples - 1, "sum": each.ledger}
                    for each in seen
                ],
                "checkpoint": target or 0,
            }
            append_decision(run.recoveries, self._attempt, row)
            return target or 0

        target = on_rank_zero(record)
        warn(
            f"{what}; going back to step {target} and skipping samples {skip.first} to {skip.last} (try {tries + 1} of"
            f" {settings.tries}, recorded in {run.recoveries})",
            self._shown,
        )
        raise RollBack(what)


def centre_and_deviation(losses: list[float]) -> tuple[float, float]:
    """The median of some losses, and their robust standard deviation: 1.4826 x the median absolute deviation, at least
    `LEAST_DEVIATION`."""
    median = statistics.median(losses)
    spread = statistics.median(abs(loss - median) for loss in losses)
    return median, max(1.4826 * spread, LEAST_DEVIATION)
