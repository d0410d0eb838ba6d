"""The best checkpoint by a figure, and the end of a run that does not get better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from llmscale.config.system import EvaluationConfig
from llmscale.train.callbacks.base import Callback
from llmscale.train.resume import Best
from llmscale.train.saving import Saver
from llmscale.train.state import StepResult, TrainState


class BestKeeper(Callback):
    """Told after the evaluations and before the checkpoints, so that a better step is saved at once. The best so far is
    kept in the manifest of every checkpoint."""

    def __init__(self, config: EvaluationConfig, names: Sequence[str], shown: bool) -> None:
        """
        Args:
            names: of the figures that are measured.
            shown: whether this rank speaks for all.
        """
        self._config = config
        self._names = names
        self._shown = shown

    def on_start(self, state: TrainState) -> None:
        name = self._config.best
        if name is not None and name not in self._names:
            raise UserError(
                f"evaluation.best is {name!r}, but what is evaluated is {', '.join(self._names)}; name one of them"
            )
        self.consider(state)
        self._stop_if_over(state)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self.consider(state)
        self._stop_if_over(state)

    def consider(self, state: TrainState) -> None:
        """Compare what was measured of this step with the best so far; only once, however often it was measured."""
        figures, state.figures = state.figures, {}
        name = self._config.best
        if name is None or name not in figures:  # as where a preemption signal came first
            return
        value, higher = figures[name]
        best = state.best if state.best is not None and state.best.metric == name else None
        if best is not None and state.step <= max(best.step, best.compared):
            return
        better = best is None or (value > best.value if higher else value < best.value)
        # A figure that is no number is never better.
        if better and not math.isnan(value):
            state.best = Best(name, value, state.step, compared=state.step)
        elif best is not None:
            # The end is looked at wherever it is; patience counts the interval.
            interval = self._config.interval
            due = not interval or state.step % interval == 0
            state.best = replace(best, since=best.since + due, compared=state.step)

    def _stop_if_over(self, state: TrainState) -> None:
        best, patience = state.best, self._config.patience
        if patience is None or best is None or best.since < patience or state.stopped:
            return
        state.stopped = True
        if self._shown:
            tell(
                f"step {state.step}: {best.metric} has not improved in {best.since} evaluations; the best,"
                f" {best.value:.4f}, is of step {best.step}, whose checkpoint is kept"
            )


class LastStep(Callback):
    """The last step among those that may be the best. It is evaluated after its checkpoint is safe, so that what the
    manifest says of the best is put right. Told of the end after the evaluations, hence of a step before them."""

    activity = "checkpoint"

    def __init__(self, keeper: BestKeeper, saver: Saver) -> None:
        self._keeper = keeper
        self._saver = saver

    def on_end(self, state: TrainState) -> None:
        before = state.best
        if state.finished:
            self._keeper.consider(state)
        if state.best != before:
            self._saver.correct(state)
