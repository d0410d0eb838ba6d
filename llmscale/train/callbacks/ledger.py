"""What each step was trained on, on record."""

from __future__ import annotations

from data_pipeline.ledger import LedgerWriter
from data_pipeline.loader import TrainLoader
from data_pipeline.stream.cursor import merge_cursors
from llmscale.distributed.process_group import gather_objects
from llmscale.train.callbacks.base import Callback
from llmscale.train.state import StepResult, TrainState


class LedgerRecorder(Callback):
    """A row of the ledger for each step, and a cursor of all ranks every so many; rank 0 writes."""

    def __init__(self, ledger: LedgerWriter | None, loader: TrainLoader, interval: int) -> None:
        """`interval`: steps between cursors."""
        self._ledger = ledger
        self._loader = loader
        self._interval = interval

    def on_step(self, state: TrainState, result: StepResult) -> None:
        if self._ledger is not None:
            first = state.samples - result.samples
            self._ledger.write(result.step, first, state.samples - 1, result.ledger_sum, result.left_out)
        if result.step % self._interval == 0:
            cursors = gather_objects(self._loader.cursor())
            if self._ledger is not None:
                self._ledger.snapshot(merge_cursors(cursors))
