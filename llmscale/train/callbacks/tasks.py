"""Tasks while a run goes on, and of the finished model."""

from __future__ import annotations

import hashlib

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import RunConfig, identity_digest
from llmscale.config.system import HELD_OUT
from llmscale.distributed.agreement import on_rank_zero
from llmscale.engine.engine import Engine
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, Prepared, prepare, run
from llmscale.evaluate.placed import Placed, Source, exactness
from llmscale.evaluate.results import figures_of
from llmscale.evaluate.tasks import Task
from llmscale.train.callbacks.base import Callback
from llmscale.train.outputs import Outputs
from llmscale.train.run_directory import RunDirectory
from llmscale.train.state import Figure, StepResult, TrainState


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
    ) -> None:
        """`tasks`: to evaluate; nothing is done without any."""
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._directory = directory
        self._outputs = outputs

    def on_start(self, state: TrainState) -> None:
        if not self._tasks:
            return
        try:
            self._prepare(state, limit=None)  # what is wrong with any item is said before a step
        except UserError as error:
            ours = "; in a config --data is evaluation.task_data, and --overflow evaluation.task_overflow"
            raise UserError(f"evaluation.tasks: {error}{ours if ' --' in str(error) else ''}") from None
        if self._config.finetune is not None and not state.step:
            self._outputs.tasks(0, {name: row for name, (row, _) in self._measure(state, None).items()})

    def on_step(self, state: TrainState, result: StepResult) -> None:
        interval = self._config.evaluation.interval
        if self._tasks and interval and state.step % interval == 0 and not state.finished:
            self._evaluate(state)

    def on_end(self, state: TrainState) -> None:
        if self._tasks and state.finished:
            self._evaluate(state)

    def _evaluate(self, state: TrainState) -> None:
        figures = self._measure(state, None if state.finished else self._config.evaluation.task_limit)
        self._outputs.tasks(state.step, {name: row for name, (row, _) in figures.items()})
        for name, (row, higher) in figures.items():
            state.figures[name] = Figure(row["value"], higher)

    def _measure(self, state: TrainState, limit: int | None) -> dict[str, tuple[dict[str, float], bool]]:
        prepared = self._prepare(state, limit)
        run(prepared, lambda task, done, items: state.beat())
        return on_rank_zero(lambda: _figures(prepared))

    def _prepare(self, state: TrainState, limit: int | None) -> list[Prepared]:
        placed = Placed(
            self._engine,
            self._tokenizer,
            self._config,
            source_of(self._config, self._directory, state.step),
            exactness(self._engine.device, self._engine.dtype, self._engine.grid),
        )
        prepared: list[Prepared] = []
        for task in self._tasks:
            most = None if task.name == HELD_OUT else limit  # which has as many as evaluation.generate says
            choices = Choices(limit=most, overflow=self._config.evaluation.task_overflow)
            prepared += prepare(placed, [task], choices)
        return prepared


def source_of(config: RunConfig, directory: RunDirectory, step: int) -> Source:
    """A run's weights after a step; they follow from what the run is and from the layout, by rounding."""
    layout = f"{config.parallel.model_dump()} {config.engine.model_dump()}"
    digest = hashlib.sha256(f"{identity_digest(config)} {layout} {step}".encode()).hexdigest()[:16]
    return Source(str(directory.path), step, digest, directory.path / "evaluations")


def _figures(prepared: list[Prepared]) -> dict[str, tuple[dict[str, float], bool]]:
    """Value, interval and items by `task/metric`, and whether more is better."""
    rows: dict[str, tuple[dict[str, float], bool]] = {}
    for each in prepared:
        for figure in figures_of(load_artefact(each.folder)).figures:
            row = {"value": figure.value, "low": figure.low, "high": figure.high, "items": figure.n}
            rows[f"{each.task.name}/{figure.name}"] = row, figure.higher_is_better
    return rows
