"""Held-out loss while a run goes on, and of the finished model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_pipeline.base.records import read_records
from data_pipeline.finite.heldout import EvaluationSet
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, broadcast_object
from llmscale.engine.engine import Engine
from llmscale.evaluate.heldout import evaluate
from llmscale.train.callbacks.base import Callback
from llmscale.train.outputs import Outputs
from llmscale.train.signals import PreemptionFlag
from llmscale.train.state import Figure, StepResult, TrainState

_MOST = 1 / 40
"""Share of the steps' time for evaluations whose interval is not given: half of what they may take, for what is not
counted, such as batches that are not full."""
_LEAST_INTERVAL = 100
"""Steps between such evaluations at the least, so that small sets are not looked at all the time."""


class Evaluator(Callback):
    """Held-out figures every so many steps, and at the end; all ranks take part."""

    activity = "evaluation"

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        documents: EvaluationSet | None,
        outputs: Outputs,
        metrics: Path,
        flag: PreemptionFlag,
    ) -> None:
        """
        Args:
            documents: what is held out; None: nothing is, and nothing is done.
            metrics: the records of the run so far.
        """
        self._config = config.evaluation
        self._engine = engine
        self._documents = documents
        self._interval = _interval(config, documents, passes=1 if engine.shared is None else 2)
        self._outputs = outputs
        self._metrics = metrics
        self._flag = flag
        self._names = {"loss": False, **engine.measures}
        """Of the figures, and whether more is better."""
        self._done: dict[str, Any] | None = None
        """The evaluation of the step that this attempt continues from, where it is in the records."""

    def on_start(self, state: TrainState) -> None:
        if self._config.interval is None and 0 < self._interval < state.steps:
            self._outputs.progress.say(
                f"held-out loss every {self._interval} steps, since evaluation.interval is not given"
            )
        # A preemption signal may have cut the evaluation of the step short that the run continues from.
        rows = [row for row in read_records(self._metrics) if row["step"] == state.step]
        held = (row["evaluation"] for row in rows if isinstance(row.get("evaluation"), dict))
        self._done = broadcast_object(next(held, None))
        if state.step and self._done is None:
            self._evaluate_if_due(state)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self._evaluate_if_due(state)

    def on_end(self, state: TrainState) -> None:
        if not state.finished:
            return
        if state.step == state.first and self._done and None not in self._done.values():
            state.evaluation = self._done  # a start that was ended after it
        else:
            state.evaluation = self._evaluate(state, None)
        self._compare(state)

    def _evaluate_if_due(self, state: TrainState) -> None:
        if self._interval and state.step % self._interval == 0 and not state.finished:
            self._note(state, self._evaluate(state, self._config.max_samples))

    def _compare(self, state: TrainState) -> None:
        """Note the finished model's figures over the samples of the evaluations during training: those of all samples
        cannot be set beside theirs."""
        figures, most = state.evaluation, self._config.max_samples
        if self._config.best not in self._names:
            return
        if figures is not None and most is not None and self._documents is not None and most < len(self._documents):
            figures = self._measure(state, most)
        self._note(state, figures)

    def _note(self, state: TrainState, figures: dict[str, Any] | None) -> None:
        if figures is not None:
            state.figures |= {name: Figure(figures[name], higher) for name, higher in self._names.items()}

    def _evaluate(self, state: TrainState, max_samples: int | None) -> dict[str, Any] | None:
        """Measured and written; None as `_measure`."""
        figures = self._measure(state, max_samples)
        if figures is not None:
            self._outputs.evaluation(state.step, figures)
        return figures

    def _measure(self, state: TrainState, max_samples: int | None) -> dict[str, Any] | None:
        """Figures over all ranks; None when a preemption signal came first, which ends the training too."""
        if self._documents is None:
            return None
        grid = self._engine.grid
        figures = evaluate(
            self._engine.measure,
            self._documents,
            self._config.batch,
            rank=grid.coordinate("data"),
            ranks=grid.data,
            reduce=all_reduce_sum,
            counted=grid.is_sample_leader,
            max_samples=max_samples,
            measures=list(self._engine.measures),
            text=self._engine.per_token,
            shared=self._engine.shared,
            together=self._engine.whole_batch,
            stop=self._flag.poll,
        )
        if figures is None:
            state.preempted = True
        return figures


def _interval(config: RunConfig, documents: EvaluationSet | None, passes: int) -> int:
    """Steps between evaluations; 0 for none before the end.

    What is not given is counted: a forward pass costs a third of training on the sample where all weights are trained
    (Kaplan et al. 2020, section 2.1). So a run stays a function of its config on machines of any speed.

    Args:
        documents: what is held out.
        passes: forward passes of each sample.
    """
    asked = config.evaluation
    if asked.interval is not None or documents is None or config.finetune is not None:
        return asked.interval or 0
    samples = len(documents) if asked.max_samples is None else min(len(documents), asked.max_samples)
    ramp = config.train.batch_ramp
    batch = config.train.global_batch if ramp is None else ramp.start
    return max(_LEAST_INTERVAL, math.ceil(samples * passes / 3 / (_MOST * batch)))
