"""Runs that have stopped to learn: steps without a finite gradient, one after the other."""

from __future__ import annotations

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import warn
from llmscale.checkpoint.members import own_checkpoints
from llmscale.config import RunConfig, identity, override_word
from llmscale.train.callbacks.base import Callback
from llmscale.train.saving import Saver
from llmscale.train.state import StepResult, TrainState

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient after which a run ends."""


class DivergedError(RuntimeError):
    """A run ended while its steps were skipped, so that it is neither done nor saved. Every rank raises it."""


class DivergenceWatch(Callback):
    """Warns once of a skipped step, and ends a run after `MOST_SKIPPED` in a row, or with its last step. In between no
    checkpoint is saved, so that those of before stay. Every rank sees the same norm and so decides alike.

    In fp16 steps are skipped until the loss is scaled as it should be; those do not count.
    """

    def __init__(self, config: RunConfig, saver: Saver, *, fp16: bool, shown: bool) -> None:
        """`shown`: whether this rank tells the user."""
        self._config = config
        self._saver = saver
        self._shown = shown
        # Halvings until the factor is 1, before which DeepSpeed lets one overflow pass.
        self._allowed = config.engine.initial_scale_power + 1 if fp16 else 0
        self._skipped = 0
        self._since = 0
        self._warned = False

    def on_step(self, state: TrainState, result: StepResult) -> None:
        """Count; a step without targets says nothing.

        Raises:
            UserError: too many in a row; what happened since when, and what to change.
        """
        if not result.tokens:
            return
        self._skipped = self._skipped + 1 if result.skipped else 0
        if self._skipped == 1:
            self._since = result.step
        state.diverging = self._skipped > self._allowed
        if state.diverging and not self._warned:
            self._warned = True
            self._warn(result)
        if self._skipped >= self._allowed + MOST_SKIPPED:
            raise UserError(
                f"{self._skipped} consecutive steps, from step {self._since} on, had a non-finite gradient, so that no"
                f" update was applied; {self._advice()}"
            )

    def on_stop(self, state: TrainState) -> None:
        """Refuse an end at which no update is applied.

        Raises:
            DivergedError: the last steps were skipped, or all of them were.
        """
        if state.diverging:
            self._saver.wait()  # for a checkpoint of before, which may still be on its way to the disk
            nothing = f"every step from {self._since} on had a non-finite gradient"
            if state.preempted:
                raise DivergedError(
                    f"a preemption signal came at step {state.step}, but {nothing}, so that step is not saved; the"
                    f" same command continues from the newest checkpoint; if it ends so again, {self._advice()}"
                )
            raise DivergedError(
                f"step {state.step} was the last one, but {nothing}, so that it is not saved and the run is not done;"
                f" {self._advice()}"
            )
        if state.finished and state.skipped_steps >= state.step:
            raise DivergedError(
                f"step {state.step} was the last one, but none changed a weight, since each was skipped (no target,"
                f" or a gradient that is not finite), so that the run is not done; look at data.sources and the"
                f" objective, or {self._advice()}"
            )

    def _warn(self, result: StepResult) -> None:
        warn(
            f"the gradient of step {result.step} is not finite (loss {result.loss:g}), so the step is skipped;"
            f" checkpoint.interval waits for a step that counts, and {MOST_SKIPPED} such steps in a row end the run",
            self._shown,
        )

    def _advice(self) -> str:
        optimizer = self._config.optimizer
        clip = f"lower optimizer.clip ({optimizer.clip:g})" if optimizer.clip else "set optimizer.clip (0: none)"
        own = own_checkpoints(self._saver.run.checkpoints, identity(self._config))
        earlier = next((folder for folder, manifest in own if manifest.step < self._since), None)
        word = "" if earlier is None else override_word("train.init_from", earlier)
        start = f", from an earlier checkpoint ({word})" if word else ""
        return f"lower optimizer.lr ({optimizer.lr:g}) or {clip} in a new run.directory{start}"
