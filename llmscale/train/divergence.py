"""Runs that have stopped to learn: steps without a finite gradient, one after the other."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from llmscale.config import RunConfig, override_word
from llmscale.train.callbacks import Callback, StepResult

if TYPE_CHECKING:
    from llmscale.train.trainer import Trainer

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient after which a run ends."""


class DivergenceWatch(Callback):
    """Warns once of a skipped step, and ends a run after `MOST_SKIPPED` in a row. In between no checkpoint is saved, so
    that those of before stay. Every rank sees the same norm and so decides alike.

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
            raise UserError(self._sentence(trainer))

    def _warn(self, trainer: Trainer, result: StepResult) -> None:
        text = (
            f"warning: the gradient of step {result.step} is not finite (loss {result.loss:g}), so the step is skipped;"
            f" checkpoint.interval waits for a step that counts, and {MOST_SKIPPED} such steps in a row end the run"
        )
        logging.getLogger("llmscale").warning(text)
        if trainer.world.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def _sentence(self, trainer: Trainer) -> str:
        optimizer = self._config.optimizer
        clip = f"lower optimizer.clip ({optimizer.clip:g})" if optimizer.clip else "set optimizer.clip (0: none)"
        names = sorted(path.name for path in trainer.run.checkpoints.glob("step-????????"))
        earlier = [name for name in names if name < f"step-{self._since:08d}"]
        start = (
            f", from an earlier checkpoint ({override_word('train.init_from', trainer.run.checkpoints / earlier[-1])})"
            if earlier
            else ""
        )
        return (
            f"nothing was learned in {self._skipped} steps in a row, since the gradient has not been finite from step"
            f" {self._since} on; lower optimizer.lr ({optimizer.lr:g}) or {clip} in a new run.directory"
            f"{start}"
        )
