"""The best checkpoint by a figure, and the end of a run that does not get better."""

from __future__ import annotations

import math
from dataclasses import replace

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from llmscale.config.system import EvaluationConfig
from llmscale.train.callbacks.base import Callback
from llmscale.train.resume import Best
from llmscale.train.state import StepResult, TrainState


class BestKeeper(Callback):
    """Told after the evaluations and before the checkpoints, so that a better step is saved at once. The best so far is
    kept in the manifest of every checkpoint."""

    def __init__(self, config: EvaluationConfig, shown: bool) -> None:
        """`shown`: whether this rank speaks for all."""
        self._config = config
        self._shown = shown

    def on_start(self, state: TrainState) -> None:
        self._consider(state)
        self._stop_if_over(state)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self._consider(state)
        self._stop_if_over(state)

    def _consider(self, state: TrainState) -> None:
        figures, state.figures = state.figures, {}
        name = self._config.best
        if name is None or not figures:
            return
        if name not in figures:
            raise UserError(
                f"evaluation.best is {name!r}, but what is evaluated is {', '.join(figures)}; name one of them"
            )
        value, higher = figures[name]
        best = state.best if state.best is not None and state.best.metric == name else None
        better = best is None or (value > best.value if higher else value < best.value)
        # A figure that is no number is never better, nor is one of a step that was there before.
        if better and not math.isnan(value):
            state.best = Best(name, value, state.step)
        elif best is not None and best.step != state.step:
            state.best = replace(best, since=best.since + 1)

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
