"""`llmscale train`: from a config to an outcome, on this rank."""

from __future__ import annotations

import contextlib
import logging
import sys

import torch

from data_pipeline.base.durable import unlinked
from data_pipeline.base.errors import UserError, first_line
from data_pipeline.base.records import RecordWriter
from data_pipeline.base.terminal import visible
from data_pipeline.ledger import LedgerWriter
from llmscale.checkpoint import CheckpointError
from llmscale.config import RunConfig, flatten
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import (
    LostRankError,
    World,
    join,
    leave,
    named_losses,
    on_stuck,
    read_world,
    refuse,
)
from llmscale.engine.allocator import keep_large_blocks
from llmscale.engine.engine import accumulation
from llmscale.engine.pipeline import make_engine
from llmscale.layout import require_legal
from llmscale.objectives import build_loss
from llmscale.parallel.grid import AXES, RankGrid
from llmscale.train import build
from llmscale.train.callbacks import Checkpointer, Evaluator, MetricsLogger
from llmscale.train.data_report import DataReporter
from llmscale.train.divergence import DivergedError, DivergenceWatch
from llmscale.train.finish import finish
from llmscale.train.lost_rank import LossReport
from llmscale.train.profiling import Profiler
from llmscale.train.progress import Progress
from llmscale.train.resume import find_resume, restore
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import PREEMPTED, Phase, PreemptionFlag
from llmscale.train.trackers import start_trackers
from llmscale.train.trainer import Trainer


def train(config: RunConfig, flag: PreemptionFlag, from_scratch: bool = False) -> int:
    """Train on this rank until done, or until `flag` is raised on any; returns the exit code.

    Args:
        from_scratch: whether a run that has lost its checkpoints may begin at step 0.

    Raises:
        UserError: the config, the files or the machine cannot serve the run. Nothing that a run had is changed.
    """
    try:
        world = read_world(config.run.device)
        require_legal(config, world.size)
    except UserError as error:
        refuse(error)
    run = RunDirectory(config.run.directory)
    with named_losses(), contextlib.ExitStack() as stack:
        if world.device.type == "cpu":
            keep_large_blocks()
        threads = build.set_threads(config, world)
        join(world, settings=dict(flatten(config.model_dump(mode="json"))))
        stack.push(_leave)
        flag.expect_no_step(others=world.size > 1)
        attempt = build.open_run(config, run, stack, from_scratch)
        if attempt is None:
            step = run.outcome()["step"]
            gone = (
                ""
                if run.newest_step() == step
                else f"; but {run.checkpoints} has no checkpoint of step {step} any more"
            )
            _say(world, f"{run.path} is finished: all {step} steps are done, see {run.summary_file}{gone}")
            return 0

        def preempted() -> None:
            if world.rank == 0:
                run.record_outcome("preempted", attempt=attempt, step=run.saved)

        if world.size == 1 and flag.raised:
            preempted()
            return PREEMPTED
        flag.last_words = preempted
        _log_to_file(run, world)
        trainer = None
        losses = LossReport(run, world, attempt, flag)
        on_stuck(losses.on_stuck)
        try:
            with named_losses():
                build.require_shared(run, world)
                trainer = losses.trainer = assemble(config, run, world, attempt, flag, stack, from_scratch)
                _announce(trainer, threads)
                _run(trainer, stack)
                return _conclude(trainer)
        except BaseException as error:
            flag.enter(Phase.OVER)
            lost = isinstance(error, RuntimeError) and not isinstance(error, (CheckpointError, DivergedError))
            if losses.excused and lost:  # a rank that the same signal ended at once
                with contextlib.suppress(OSError):
                    preempted()
                return PREEMPTED
            if isinstance(error, LostRankError):
                losses.tell(error)
            elif world.rank == 0:
                with contextlib.suppress(OSError):
                    run.record_outcome("failed", attempt=attempt, reason=f"{type(error).__name__}: {error}")
            raise


def _leave(kind: object, error: BaseException | None, trace: object) -> None:
    leave("" if error is None else f"{type(error).__name__}: {first_line(error)}")


def assemble(
    config: RunConfig,
    run: RunDirectory,
    world: World,
    attempt: int,
    flag: PreemptionFlag,
    stack: contextlib.ExitStack,
    from_scratch: bool = False,
) -> Trainer:
    """Everything a run needs, continued from its newest intact checkpoint; `stack` closes what needs closing."""
    grid = build.build_grid(config, world)
    tokenizer = build.build_tokenizer(config, run)
    evaluation_set = build.build_evaluation(config, run)
    resume = find_resume(run, config, from_scratch)
    loader = build.build_loader(config, run, grid, resume.samples, resume.cursor, world.device)
    stack.callback(loader.close)
    config = build.with_steps(config, loader)
    model, weights = build.build_model(config, tokenizer, grid, world, resume.checkpoint is not None)
    loss = build_loss(config.objective, config.model)
    engine = make_engine(model, loss, config, grid, world.device, weights)
    stack.callback(engine.close)
    if resume.checkpoint is not None:
        restore(engine, resume.checkpoint)
    writer = build.build_writer(config, run, world, attempt)
    ledger = None
    if world.rank == 0:
        ledger = LedgerWriter(run.path, attempt, config.logging.ledger_snapshot_interval, continues=resume.step)
    return Trainer(
        config, run, world, grid, loss, engine, loader, evaluation_set, writer, ledger, tokenizer, flag, resume, attempt
    )


def _run(trainer: Trainer, stack: contextlib.ExitStack) -> None:
    config, run, lead = trainer.config, trainer.run, trainer.world.rank == 0
    records = stack.enter_context(RecordWriter(run.metrics, trainer.attempt, continues=trainer.step)) if lead else None
    trackers = start_trackers(config, run, trainer.step) if lead else []
    progress = stack.enter_context(Progress(config.train.steps, trainer.step, config.logging.interval, shown=lead))
    trainer.train(
        [
            MetricsLogger(records, progress, trackers, config.logging.interval),
            DivergenceWatch(config, fp16=trainer.engine.dtype == torch.float16),
            DataReporter(run.quarantine, config.data.bad_record_warning, config.logging.interval, trainer.world),
            Evaluator(records, progress, trackers, config.evaluation.interval),
            Checkpointer(config.checkpoint.interval),
            Profiler(config.logging.profile_start, config.logging.profile_steps),
        ]
    )
    for tracker in trackers:
        tracker.finish()


def _conclude(trainer: Trainer) -> int:
    run, world = trainer.run, trainer.world
    if trainer.preempted:
        if world.rank == 0:
            run.record_outcome("preempted", attempt=trainer.attempt, step=trainer.step)
        trainer.flag.enter(Phase.OVER)
        _say(world, f"saved step {trainer.step} after a preemption signal; the same command continues from there")
        return PREEMPTED
    trainer.flag.enter(Phase.SAVED)
    on_rank_zero(lambda: finish(trainer))
    trainer.flag.enter(Phase.OVER)
    if world.rank == 0:
        run.record_outcome("done", attempt=trainer.attempt, step=trainer.step)
    return 0


def _announce(trainer: Trainer, threads: int) -> None:
    config, resume = trainer.config, trainer.resume
    for reason in resume.skipped:
        _say(trainer.world, f"warning: skipping checkpoint: {reason}")
    where = f"continuing at step {resume.step}" if resume.checkpoint else "starting"
    micro, accumulated = accumulation(config, trainer.grid.data)
    _say(
        trainer.world,
        f"{trainer.run.path}: {where}, attempt {trainer.attempt}; {trainer.engine.parameters:,} parameters,"
        f" {config.train.steps} steps of {config.train.global_batch} x {config.data.sequence_length} tokens;"
        f" {_layout(trainer.grid)} x {accumulated} micro batch(es) of {micro},"
        f" ZeRO {config.engine.zero_stage}, {str(trainer.engine.dtype).removeprefix('torch.')} on"
        f" {trainer.world.device.type}, {threads} thread(s)",
    )


def _layout(grid: RankGrid) -> str:
    """The number of ranks, and what it is the product of where there is more than data parallelism."""
    factors = [f"{name} {grid.size(name)}" for name in AXES if grid.size(name) > 1]
    return f"{grid.world_size} rank(s)" + (
        f" ({' x '.join(factors)})" if factors not in ([], [f"data {grid.data}"]) else ""
    )


def _log_to_file(run: RunDirectory, world: World) -> None:
    """Everything that is logged by libraries and by us goes to a file of this rank."""
    run.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.StreamHandler(
        open(run.logs / f"rank-{world.rank:05d}.log", "a", opener=unlinked)  # noqa: SIM115 - open until the end
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # A log that cannot be written, on a full disk say, must not bury the reason under its own tracebacks.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _say(world: World, text: str) -> None:
    logging.getLogger("llmscale").info(text)
    if world.rank == 0:
        print(visible(text), file=sys.stderr, flush=True)
