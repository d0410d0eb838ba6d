"""Tasks while a run goes on, and of the finished model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import RunConfig, identity_digest
from llmscale.config.system import HELD_OUT
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import broadcast_object
from llmscale.engine.engine import Engine
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, Prepared, prepare, run
from llmscale.evaluate.placed import Interrupted, Placed, Source, exactness
from llmscale.evaluate.results import figures_of
from llmscale.evaluate.tasks import Task
from llmscale.train.callbacks.base import Callback
from llmscale.train.outputs import Outputs
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import PreemptionFlag
from llmscale.train.state import Figure, StepResult, TrainState


class _Measured(NamedTuple):
    """A figure of a task."""

    row: dict[str, float]
    """Its value, interval and items, for the records."""
    compared: Figure
    """Over the items of the evaluations during training, which are not more at the end."""


class TaskEvaluator(Callback):
    """Figures of tasks at the interval of evaluations, at any layout; the artefacts are kept in the run."""

    activity = "evaluation"

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        tokenizer: Tokenizer,
        tasks: list[Task],
        directory: RunDirectory,
        outputs: Outputs,
        flag: PreemptionFlag,
    ) -> None:
        """`tasks`: to evaluate; nothing is done without any."""
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._directory = directory
        self._outputs = outputs
        self._flag = flag

    def on_start(self, state: TrainState) -> None:
        if not self._tasks:
            return
        try:
            self._prepare(state, limit=None)  # what is wrong with any item is said before a step
        except UserError as error:
            ours = "; in a config --data is evaluation.task_data, and --overflow evaluation.task_overflow"
            raise UserError(f"evaluation.tasks: {error}{ours if ' --' in str(error) else ''}") from None
        if not state.step:
            if self._config.finetune is not None:
                self._measure(state, None)
            return
        # A preemption signal may have cut the evaluation of the step short that the run continues from.
        rows = (row for row in read_records(self._directory.metrics) if row["step"] == state.step)
        if not broadcast_object(any("tasks" in row for row in rows)):
            self._evaluate_if_due(state)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        self._evaluate_if_due(state)

    def on_end(self, state: TrainState) -> None:
        if self._tasks and state.finished and not state.preempted:
            self._evaluate(state, None)

    def _evaluate_if_due(self, state: TrainState) -> None:
        interval = self._config.evaluation.interval
        due = interval and state.step % interval == 0
        if self._tasks and due and not state.finished and not state.preempted:
            self._evaluate(state, self._config.evaluation.task_limit)

    def _evaluate(self, state: TrainState, limit: int | None) -> None:
        state.figures |= {name: each.compared for name, each in self._measure(state, limit).items()}

    def _measure(self, state: TrainState, limit: int | None) -> dict[str, _Measured]:
        """Measured and written; nothing where a preemption signal came first, which ends the training too. What is
        done of it until then is in the artefacts, where the next start goes on."""
        prepared = self._prepare(state, limit)
        try:
            run(prepared, lambda task, done, items: state.beat())
        except Interrupted:
            state.preempted = True
            return {}
        figures = on_rank_zero(lambda: self._figures(prepared))
        self._outputs.tasks(state.step, {name: each.row for name, each in figures.items()})
        return figures

    def _figures(self, prepared: list[Prepared]) -> dict[str, _Measured]:
        """By `task/metric`."""
        found: dict[str, _Measured] = {}
        for each in prepared:
            artefact = load_artefact(each.folder)
            numbers = set(each.task.chosen(self._most(each.task)))
            common = [record for record in artefact.records if record.number in numbers]
            figures = compared = figures_of(artefact).figures
            if len(common) < len(artefact.records):
                compared = figures_of(replace(artefact, records=common)).figures
            for figure, other in zip(figures, compared, strict=True):
                row = {"value": figure.value, "low": figure.low, "high": figure.high, "items": figure.n}
                found[f"{each.task.name}/{figure.name}"] = _Measured(row, Figure(other.value, figure.higher_is_better))
        return found

    def _most(self, task: Task) -> int | None:
        """Most items of a task during training; of the run's own one as many as evaluation.generate says."""
        return None if task.name == HELD_OUT else self._config.evaluation.task_limit

    def _prepare(self, state: TrainState, limit: int | None) -> list[Prepared]:
        placed = Placed(
            self._engine,
            self._tokenizer,
            self._config,
            source_of(self._config, self._directory, state.step),
            exactness(self._engine.device, self._engine.dtype, self._engine.grid),
            stop=self._flag.poll,
        )
        prepared: list[Prepared] = []
        for task in self._tasks:
            choices = Choices(limit=limit and self._most(task), overflow=self._config.evaluation.task_overflow)
            prepared += prepare(placed, [task], choices)
        return prepared


def source_of(config: RunConfig, directory: RunDirectory, step: int) -> Source:
    """A run's weights after a step; they follow from what the run is and from the layout, by rounding."""
    layout = f"{config.parallel.model_dump()} {config.engine.model_dump()}"
    digest = hashlib.sha256(f"{identity_digest(config)} {layout} {step}".encode()).hexdigest()[:16]
    return Source(str(directory.path), step, digest, directory.path / "evaluations")
