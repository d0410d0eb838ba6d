"""Runs that have stopped to learn: steps without a finite gradient, one after the other."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.members import own_checkpoints
from llmscale.config import RunConfig, identity, override_word
from llmscale.train.callbacks import Callback, StepResult

if TYPE_CHECKING:
    from llmscale.train.trainer import Trainer

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient after which a run ends."""


class DivergedError(RuntimeError):
    """A run ended while its steps were skipped, so that it is neither done nor saved. Every rank raises it."""


class DivergenceWatch(Callback):
    """Warns once of a skipped step, and ends a run after `MOST_SKIPPED` in a row, or with its last step. In between no
    checkpoint is saved, so that those of before stay. Every rank sees the same norm and so decides alike.

    In fp16 steps are skipped until the loss is scaled as it should be; those do not count.
    """

    def __init__(self, config: RunConfig, fp16: bool) -> None:
        self._config = config
        # Halvings until the factor is 1, before which DeepSpeed lets one overflow pass.
        self._allowed = config.engine.initial_scale_power + 1 if fp16 else 0
        self._skipped = 0
        self._since = 0
        self._warned = False

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """Count; a step without targets says nothing.

        Raises:
            UserError: too many in a row; what happened since when, and what to change.
        """
        if not result.tokens:
            return
        self._skipped = self._skipped + 1 if result.skipped else 0
        if self._skipped == 1:
            self._since = result.step
        trainer.diverging = self._skipped > self._allowed
        if trainer.diverging and not self._warned:
            self._warned = True
            self._warn(trainer, result)
        if self._skipped >= self._allowed + MOST_SKIPPED:
            raise UserError(
                f"nothing was learned in {self._skipped} steps in a row, since the gradient has not been finite from"
                f" step {self._since} on; {self._advice(trainer)}"
            )

    def on_stop(self, trainer: Trainer) -> None:
        """Refuse an end at which the run learns nothing.

        Raises:
            DivergedError: the last steps were skipped, or all of them were.
        """
        if trainer.diverging:
            trainer.writer.wait()  # for a checkpoint of before, which may still be on its way to the disk
            nothing = f"nothing was learned from step {self._since} on, since the gradient has not been finite"
            if trainer.preempted:
                raise DivergedError(
                    f"a preemption signal came at step {trainer.step}, but {nothing}, so that step is not saved; the"
                    f" same command continues from the newest checkpoint; if it ends so again, {self._advice(trainer)}"
                )
            raise DivergedError(
                f"step {trainer.step} was the last one, but {nothing}, so that it is not saved and the run is not done;"
                f" {self._advice(trainer)}"
            )
        if trainer.finished and trainer.skipped_steps >= trainer.step:
            raise DivergedError(
                f"step {trainer.step} was the last one, but none changed a weight, since each was skipped (no target,"
                f" or a gradient that is not finite), so that the run is not done; look at data.sources and the"
                f" objective, or {self._advice(trainer)}"
            )

    def _warn(self, trainer: Trainer, result: StepResult) -> None:
        text = (
            f"warning: the gradient of step {result.step} is not finite (loss {result.loss:g}), so the step is skipped;"
            f" checkpoint.interval waits for a step that counts, and {MOST_SKIPPED} such steps in a row end the run"
        )
        logging.getLogger("llmscale").warning(text)
        if trainer.world.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def _advice(self, trainer: Trainer) -> str:
        optimizer = self._config.optimizer
        clip = f"lower optimizer.clip ({optimizer.clip:g})" if optimizer.clip else "set optimizer.clip (0: none)"
        own = own_checkpoints(trainer.run.checkpoints, identity(self._config))
        earlier = next((folder for folder, manifest in own if manifest.step < self._since), None)
        word = "" if earlier is None else override_word("train.init_from", earlier)
        start = f", from an earlier checkpoint ({word})" if word else ""
        return f"lower optimizer.lr ({optimizer.lr:g}) or {clip} in a new run.directory{start}"
