"""`llmscale train`: from a config to an outcome, on this rank."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict
from typing import IO

from data_pipeline.base.durable import unlinked
from data_pipeline.base.errors import UserError, first_line
from data_pipeline.base.terminal import tell
from llmscale.checkpoint import CheckpointError
from llmscale.config import RunConfig, flatten
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.exit_codes import PREEMPTED
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
from llmscale.engine.allocator import free_memory, keep_large_blocks
from llmscale.engine.engine import accumulation
from llmscale.finetune.trained import names_of, training_of
from llmscale.layout import require_legal
from llmscale.parallel.grid import AXES, RankGrid
from llmscale.train import build
from llmscale.train.callbacks.divergence import DivergedError
from llmscale.train.finish import finish
from llmscale.train.hang import hang_watch
from llmscale.train.lost_rank import LossReport
from llmscale.train.recoveries import RollBack
from llmscale.train.run_directory import RunDirectory
from llmscale.train.setup import Setup, set_up
from llmscale.train.signals import Phase, PreemptionFlag
from llmscale.train.silent_errors import SilentError
from llmscale.train.time_account import TimeAccount


def train(
    config: RunConfig, flag: PreemptionFlag, from_scratch: bool = False, account: TimeAccount | None = None
) -> int:
    """Train on this rank until done, or until `flag` is raised on any; returns the exit code.

    Args:
        from_scratch: whether a run that has lost its checkpoints may begin at step 0.
        account: of the time of this attempt, where it began before this call.

    Raises:
        UserError: the config, the files or the machine cannot serve the run. Nothing that a run had is changed.
    """
    account = account or TimeAccount()
    try:
        world = read_world(config.run.device)
        _require_possible(config, world)
    except UserError as error:
        refuse(error)
    run = RunDirectory(config.run.directory)
    with named_losses(), contextlib.ExitStack() as stack:
        if world.device.type == "cpu":
            keep_large_blocks()
        threads = build.set_threads(config, world)
        settings = dict(flatten(config.model_dump(mode="json")))
        join(world, config.recovery.collective_seconds, settings)
        stack.push(_leave)
        flag.expect_no_step(others=world.size > 1)
        attempt = build.open_run(config, run, stack, account, world, from_scratch)
        if attempt is None:
            step = run.outcome()["step"]
            gone = (
                ""
                if run.newest_step() == step
                else f"; but {run.checkpoints} has no checkpoint of step {step} any more"
            )
            _say(world, f"{run.path} is finished: all {step} steps are done, see {run.summary_file}{gone}")
            return 0

        attempts = _Attempts(config, run, world, flag, _log_to_file(run, world), threads, from_scratch)
        return attempts.run_all(attempt, account, stack)


class _Attempts:
    """The attempts of these processes: one, and another each time that the loss has jumped and the run goes back."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        world: World,
        flag: PreemptionFlag,
        log: IO[str],
        threads: int,
        from_scratch: bool,
    ) -> None:
        self._config, self._run, self._world, self._flag, self._log = config, run, world, flag, log
        self._threads, self._from_scratch = threads, from_scratch
        self._grid: RankGrid | None = None
        self._attempt = 0

    def run_all(self, attempt: int, account: TimeAccount, stack: contextlib.ExitStack) -> int:
        """The exit code of the last attempt.

        Args:
            attempt: number of the first one.
            account: of its time.
            stack: closes what the last one has made, once it is known why it ended.
        """
        world, flag = self._world, self._flag
        self._attempt = attempt
        if world.size == 1 and flag.raised:
            self._preempted()
            return PREEMPTED
        flag.last_words = self._preempted
        losses = LossReport(self._run, world, attempt, flag)
        on_stuck(losses.on_stuck)
        try:
            with named_losses():
                build.require_shared(self._run, world)
                while True:
                    parts = stack.enter_context(contextlib.ExitStack())
                    try:
                        return self._run_one(losses, account, parts)
                    except SilentError as error:
                        self._distrust(error)
                        return PREEMPTED
                    except RollBack:
                        if losses.preempted:
                            self._preempted()
                            flag.enter(Phase.OVER)
                            return PREEMPTED
                    parts.close()
                    # Only here has the last attempt let go of its model.
                    free_memory(world.device)
                    account = TimeAccount()
                    flag.expect_no_step(others=world.size > 1)
                    self._attempt = losses.attempt = build.begin_again(self._run, account, world)
        except BaseException as error:
            flag.enter(Phase.OVER)
            lost = isinstance(error, RuntimeError) and not isinstance(error, (CheckpointError, DivergedError))
            if losses.excused and lost:  # a rank that the same signal ended at once
                with contextlib.suppress(OSError):
                    self._preempted()
                return PREEMPTED
            if isinstance(error, LostRankError):
                losses.tell(error)
            elif world.rank == 0:
                with contextlib.suppress(OSError):
                    reason = f"{type(error).__name__}: {error}"
                    self._run.record_outcome("failed", attempt=self._attempt, reason=reason)
            raise

    def _run_one(self, losses: LossReport, account: TimeAccount, stack: contextlib.ExitStack) -> int:
        whose = (self._config, self._run, self._world, self._attempt)
        setup = set_up(*whose, self._flag, stack, self._from_scratch, account, self._grid)
        self._grid = setup.grid
        losses.state = setup.state
        _announce(setup, self._threads)
        with hang_watch(*whose, setup.state, self._flag, self._log):
            setup.train(stack)
        return _conclude(setup)

    def _distrust(self, error: SilentError) -> None:
        """Say which rank computes wrongly. Nothing of this step is saved, since nobody knows what is right."""
        self._flag.enter(Phase.OVER)
        checkpoint = self._run.newest_step()
        saved = f"the newest checkpoint is of step {checkpoint}" if checkpoint else "there is no checkpoint yet"
        text = f"{error}; nothing of this step was saved, {saved}; start it again without that node"
        if self._world.rank == 0:
            faulty = [asdict(fault) for fault in error.faults]
            details = {"step": error.step - 1, "checkpoint": checkpoint, "faulty": faulty}
            self._run.record_outcome("failed", attempt=self._attempt, reason=text, **details)
        _say(self._world, f"llmscale: {text}")

    def _preempted(self) -> None:
        if self._world.rank == 0:
            self._run.record_outcome("preempted", attempt=self._attempt, step=self._run.saved)


def _require_possible(config: RunConfig, world: World) -> None:
    require_legal(config, world.size)
    if config.finetune is not None:
        training_of(config.model, config.finetune, names_of(config.model))


def _leave(kind: object, error: BaseException | None, trace: object) -> None:
    leave("" if error is None else f"{type(error).__name__}: {first_line(error)}")


def _conclude(setup: Setup) -> int:
    run, world, state = setup.run, setup.world, setup.state
    if state.preempted:
        if world.rank == 0:
            run.record_outcome("preempted", attempt=setup.attempt, step=state.step)
        setup.flag.enter(Phase.OVER)
        _say(world, f"saved step {state.step} after a preemption signal; the same command continues from there")
        return PREEMPTED
    setup.flag.enter(Phase.SAVED)
    on_rank_zero(lambda: finish(setup))
    setup.flag.enter(Phase.OVER)
    if world.rank == 0:
        stopped = {"stopped": True} if state.stopped else {}
        run.record_outcome("done", attempt=setup.attempt, step=state.step, **stopped)
    return 0


def _announce(setup: Setup, threads: int) -> None:
    config, resume = setup.config, setup.resume
    for reason in resume.skipped:
        _say(setup.world, f"warning: skipping checkpoint: {reason}")
    where = f"continuing at step {resume.step}" if resume.checkpoint else "starting"
    micro, accumulated = accumulation(config.train, setup.grid.data)
    _say(
        setup.world,
        f"{setup.run.path}: {where}, attempt {setup.attempt}; {_parameters(setup)},"
        f" {config.train.steps} steps of {config.train.global_batch} x {config.data.sequence_length} tokens;"
        f" {_layout(setup.grid)} x {accumulated} micro batch(es) of {micro},"
        f" ZeRO {config.engine.zero_stage}, {str(setup.engine.dtype).removeprefix('torch.')} on"
        f" {setup.world.device.type}, {threads} thread(s)",
    )


def _parameters(setup: Setup) -> str:
    """How many parameters the model has, and how many of them are trained where that is not all."""
    engine = setup.engine
    trained = f", {engine.trained_parameters:,} of them trained" if setup.config.finetune is not None else ""
    return f"{engine.parameters:,} parameters{trained}"


def _layout(grid: RankGrid) -> str:
    """The number of ranks, and what it is the product of where there is more than data parallelism."""
    factors = [f"{name} {grid.size(name)}" for name in AXES if grid.size(name) > 1]
    return f"{grid.world_size} rank(s)" + (
        f" ({' x '.join(factors)})" if factors not in ([], [f"data {grid.data}"]) else ""
    )


def _log_to_file(run: RunDirectory, world: World) -> IO[str]:
    """Everything that is logged by libraries and by us goes to a file of this rank, which is returned."""
    run.logs.mkdir(parents=True, exist_ok=True)
    log = open(run.logs / f"rank-{world.rank:05d}.log", "a", opener=unlinked)  # noqa: SIM115 - open until the end
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # A log that cannot be written, on a full disk say, must not bury the reason under its own tracebacks.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return log


def _say(world: World, text: str) -> None:
    logging.getLogger("llmscale").info(text)
    if world.rank == 0:
        tell(text)
