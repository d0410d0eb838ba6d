"""What a fine-tuned model has forgotten: bits per byte of held-out text before the first step and after the last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.base.records import read_records
from data_pipeline.finite.heldout import EvaluationSet
from llmscale.distributed.process_group import all_reduce_sum, broadcast_object
from llmscale.engine.engine import Engine
from llmscale.evaluate.heldout import evaluate
from llmscale.train.callbacks.base import Callback
from llmscale.train.outputs import FORGETTING, Outputs
from llmscale.train.signals import PreemptionFlag
from llmscale.train.state import TrainState


class ForgettingMeter(Callback):
    """Measures before and after, by source; all ranks take part."""

    activity = "evaluation"

    def __init__(
        self,
        engine: Engine,
        sets: Mapping[str, EvaluationSet],
        batch: int,
        outputs: Outputs,
        metrics: Path,
        flag: PreemptionFlag,
    ) -> None:
        """
        Args:
            sets: by source; nothing is done without any.
            batch: samples of a forward pass.
            metrics: the records of the run so far.
        """
        self._engine = engine
        self._sets = sets
        self._batch = batch
        self._outputs = outputs
        self._metrics = metrics
        self._flag = flag
        self._before: dict[str, float] = {}

    def on_start(self, state: TrainState) -> None:
        if not self._sets:
            return
        rows = [
            row for row in read_records(self._metrics) if row["step"] == 0 and isinstance(row.get(FORGETTING), dict)
        ]
        self._before = broadcast_object(rows[-1][FORGETTING] if rows else {})
        if not state.step and not self._before:
            self._before = self._measure(state) or {}

    def on_end(self, state: TrainState) -> None:
        if not (self._sets and state.finished):
            return
        after = self._measure(state) or {}
        state.forgotten = {name: {"before": self._before.get(name), "after": value} for name, value in after.items()}

    def _measure(self, state: TrainState) -> dict[str, float] | None:
        """Bits per byte by source; None when a preemption signal came first, which ends the training too."""
        grid, found = self._engine.grid, {}
        for name, documents in self._sets.items():
            figures = evaluate(
                lambda batch: [self._engine.loss(batch)],
                documents,
                self._batch,
                rank=grid.coordinate("data"),
                ranks=grid.data,
                reduce=all_reduce_sum,
                counted=grid.is_sample_leader,
                stop=self._flag.poll,
            )
            if figures is None:
                state.preempted = True
                return None
            found[name] = figures["bits_per_byte"]
        self._outputs.forgetting(state.step, found)
        return found
