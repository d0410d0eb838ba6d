"""Checkpoints while a run goes on, and of its end."""

from __future__ import annotations

from llmscale.distributed.process_group import gather_objects
from llmscale.train.callbacks.base import Callback
from llmscale.train.saving import Saver
from llmscale.train.signals import Phase, PreemptionFlag
from llmscale.train.state import StepResult, TrainState


class Checkpointer(Callback):
    """A checkpoint every so many steps, at the end, and when preempted."""

    activity = "checkpoint"

    def __init__(self, saver: Saver, interval: int, flag: PreemptionFlag) -> None:
        self._saver = saver
        self._interval = interval
        self._flag = flag

    def on_step(self, state: TrainState, result: StepResult) -> None:
        due = bool(self._interval) and result.step % self._interval == 0
        best = state.best is not None and state.best.step == result.step
        if (due or best) and not state.diverging:
            self._save(state)

    def on_end(self, state: TrainState) -> None:
        if state.saved != state.step and state.step > state.first:
            self._save(state)
        self._saver.wait()
        # No rank may report the run as done before every rank's part is on disk.
        gather_objects(None)
        if state.finished:
            self._flag.enter(Phase.TRAINING)  # a second signal may end the evaluations that follow

    def _save(self, state: TrainState) -> None:
        self._saver.save(state)
        state.saved = state.step
