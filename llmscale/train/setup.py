"""Everything that a run needs on this rank, set up once."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass

import torch

from data_pipeline.base.records import RecordWriter
from data_pipeline.finite.heldout import EvaluationSet
from data_pipeline.ledger import LedgerWriter
from data_pipeline.loader import TrainLoader
from data_pipeline.tokenizer import Tokenizer
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config import RunConfig
from llmscale.distributed.process_group import World
from llmscale.engine.engine import Engine
from llmscale.engine.pipeline import make_engine
from llmscale.engine.settings import EngineSettings
from llmscale.evaluate.tasks import Task
from llmscale.objectives.loss import build_loss
from llmscale.parallel.grid import RankGrid
from llmscale.train import build
from llmscale.train.callbacks import Callback
from llmscale.train.callbacks.best import BestKeeper, LastStep
from llmscale.train.callbacks.checkpoints import Checkpointer
from llmscale.train.callbacks.data_report import DataReporter
from llmscale.train.callbacks.divergence import DivergenceWatch
from llmscale.train.callbacks.evaluation import Evaluator
from llmscale.train.callbacks.forgetting import ForgettingMeter
from llmscale.train.callbacks.ledger import LedgerRecorder
from llmscale.train.callbacks.metrics import MetricsLogger
from llmscale.train.callbacks.profiling import Profiler
from llmscale.train.callbacks.spikes import SpikeWatch
from llmscale.train.callbacks.tasks import TaskEvaluator
from llmscale.train.features import keep_features
from llmscale.train.forgetting import forgetting_sets
from llmscale.train.loop import Trainer
from llmscale.train.outputs import Outputs
from llmscale.train.progress import Progress
from llmscale.train.recoveries import RollBack
from llmscale.train.reference import Data, attach_references
from llmscale.train.resume import Resume, find_resume, restore
from llmscale.train.run_directory import RunDirectory
from llmscale.train.saving import Saver
from llmscale.train.signals import PreemptionFlag
from llmscale.train.silent_errors import SilentError
from llmscale.train.state import TrainState
from llmscale.train.time_account import TimeAccount, TimeKeeper
from llmscale.train.trackers import start_trackers
from llmscale.train.utilisation import utilisation_of


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    config: RunConfig
    """With the number of steps that `train.epochs` comes to."""
    run: RunDirectory
    world: World
    attempt: int
    grid: RankGrid
    tokenizer: Tokenizer
    evaluation_set: EvaluationSet | None
    tasks: list[Task]
    forgetting: dict[str, EvaluationSet]
    """By source, what may be forgotten."""
    resume: Resume
    engine: Engine
    loader: TrainLoader
    writer: CheckpointWriter
    flag: PreemptionFlag
    account: TimeAccount
    state: TrainState
    trainer: Trainer

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.world.rank == 0

    def callbacks(self, outputs: Outputs, ledger: LedgerWriter | None, keeper: TimeKeeper) -> list[Callback]:
        """In the order in which they are told of a step."""
        config, run = self.config, self.run
        saver = Saver(config, run, self.engine, self.loader, self.writer, self.resume)
        figures = ["loss", *self.engine.measures, *build.task_figures(self.tasks)]
        best = BestKeeper(config.evaluation, figures, shown=self.leads)
        return [
            LedgerRecorder(ledger, self.loader, config.logging.ledger_snapshot_interval),
            MetricsLogger(
                outputs,
                self.loader,
                config.logging.interval,
                utilisation_of(config, self.tokenizer.vocab_size, self.engine.dtype, self.world),
                self.world.device,
            ),
            DivergenceWatch(config, saver, fp16=self.engine.dtype == torch.float16, shown=self.leads),
            SpikeWatch(config, saver, self.attempt, shown=self.leads),
            DataReporter(
                run.quarantine,
                self.loader,
                warning=config.data.bad_record_warning,
                interval=config.logging.interval,
                rank=self.world.rank,
                attempt=self.attempt,
                leads=self.grid.is_sample_leader,
            ),
            LastStep(best, saver),
            Evaluator(config, self.engine, self.evaluation_set, outputs, run.metrics, self.flag),
            TaskEvaluator(config, self.engine, self.tokenizer, self.tasks, run, outputs, self.flag),
            ForgettingMeter(self.engine, self.forgetting, config.evaluation.batch, outputs, run.metrics, self.flag),
            best,
            Checkpointer(saver, config.checkpoint.interval, self.flag),
            Profiler(
                run.path / "profile", config.logging.profile_start, config.logging.profile_steps, active=self.leads
            ),
            keeper,
        ]

    def train(self, stack: contextlib.ExitStack) -> None:
        """Train to the end, or to a signal; `stack` closes what needs closing."""
        outputs, ledger, times = Outputs(self._progress(stack)), None, None
        if self.leads:
            times = stack.enter_context(RecordWriter(self.run.time, self.attempt))
            ledger = LedgerWriter(self.run.path, self.attempt, continues=self.state.first)
            outputs.records = stack.enter_context(
                RecordWriter(self.run.metrics, self.attempt, continues=self.state.first)
            )
            outputs.trackers = start_trackers(self.config, self.run, self.state.first)
        keeper = TimeKeeper(self.account, times)
        stack.callback(keeper.close)
        self.writer.prepare(self.engine.state())
        try:
            self.trainer.train(self.callbacks(outputs, ledger, keeper))
        except (RollBack, SilentError) as error:
            if isinstance(error, SilentError):
                outputs.silent_error(error.step, [asdict(fault) for fault in error.faults])
                self.writer.wait()  # for a checkpoint of before
            outputs.finish()
            raise
        keeper.close()
        outputs.finish()

    def _progress(self, stack: contextlib.ExitStack) -> Progress:
        interval = self.config.logging.interval
        return stack.enter_context(Progress(self.state.steps, self.state.first, interval, shown=self.leads))


def set_up(
    config: RunConfig,
    run: RunDirectory,
    world: World,
    attempt: int,
    flag: PreemptionFlag,
    stack: contextlib.ExitStack,
    from_scratch: bool = False,
    account: TimeAccount | None = None,
    grid: RankGrid | None = None,
) -> Setup:
    """Build everything, continued from the newest intact checkpoint; collective.

    Args:
        stack: closes what needs closing.
        from_scratch: whether a run that has lost its checkpoints may begin at step 0.
        account: of this attempt's time; it begins here when not given.
        grid: the layout with its process groups, where an earlier attempt of this process has made them.
    """
    account = account or TimeAccount()
    grid = grid or build.build_grid(config, world)
    tokenizer = build.build_tokenizer(config, run)
    evaluation_set = build.build_evaluation(config, run, tokenizer)
    tasks = build.build_tasks(config, run, tokenizer)
    forgetting = forgetting_sets(config, run, tokenizer)
    resume = find_resume(run, config, from_scratch)
    loader = build.build_loader(config, run, tokenizer, grid, resume, world.device)
    stack.callback(loader.close)
    if resume.checkpoint is None:
        build.compare_splits(loader, evaluation_set)
    config = build.with_steps(config, loader)
    attach_references(
        config,
        run,
        world,
        grid,
        Data(tokenizer, loader, evaluation_set),
        attempt=attempt,
        resume=resume,
    )
    writes = any(task.settings.WRITTEN for task in tasks)
    model, weights = build.build_model(config, tokenizer, grid, world, resume.checkpoint is not None, writes)
    loss = build_loss(config.objective, config.model)
    engine = make_engine(model, loss, EngineSettings.of(config), grid, world.device, weights)
    stack.callback(engine.close)
    if resume.checkpoint is not None:
        restore(engine, resume.checkpoint)
    keep_features(config, run, engine)
    writer = build.build_writer(config, run, world, attempt)
    state = TrainState.after(resume, config.train.steps)
    trainer = Trainer(config, engine, loader, state, flag, account)
    return Setup(
        config=config,
        run=run,
        world=world,
        attempt=attempt,
        grid=grid,
        tokenizer=tokenizer,
        evaluation_set=evaluation_set,
        tasks=tasks,
        forgetting=forgetting,
        resume=resume,
        engine=engine,
        loader=loader,
        writer=writer,
        flag=flag,
        account=account,
        state=state,
        trainer=trainer,
    )
