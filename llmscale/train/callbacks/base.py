"""What the loop tells a callback."""

from __future__ import annotations

from typing import ClassVar

from llmscale.train.state import StepResult, TrainState


class Callback:
    """Told of every step, in the order ledger, logging, evaluation, checkpoints, so that a checkpoint follows all
    records of its step; and of the end in the reverse order, so that the last checkpoint is safe before a long
    evaluation. Every method is called on every rank."""

    activity: ClassVar[str] = "other"
    """What its time counts as in the account of the run's wall time: one of `llmscale.report.goodput.ACTIVITIES`."""

    def on_start(self, state: TrainState) -> None:
        """Before the first step of this attempt."""

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """After each step."""

    def on_stop(self, state: TrainState) -> None:
        """After the last step of this attempt, also when preempted, and before any `on_end`."""

    def on_end(self, state: TrainState) -> None:
        """At the end of this attempt, also when preempted."""
