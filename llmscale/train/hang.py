"""What a run does when no rank gets further: the watch that notices, and the end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import IO

from data_pipeline.base.terminal import tell
from llmscale.config import RunConfig
from llmscale.distributed.exit_codes import HUNG
from llmscale.distributed.hang import HangWatch, Standing, standing
from llmscale.distributed.process_group import World, launcher_tells, watch
from llmscale.train.lost_rank import speaks_first
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import PreemptionFlag
from llmscale.train.state import TrainState

ADAPTIVE_SECONDS = 900.0
"""Without `recovery.hang_seconds`, ranks may stand still for at least so long ..."""
ADAPTIVE_FACTOR = 10.0
"""... and for so many times the longest time so far."""
FIRST_STEP_FACTOR = 10.0
"""How many times as long the first step of an attempt may take, in which things are compiled and allocated."""


def hang_watch(
    config: RunConfig,
    run: RunDirectory,
    world: World,
    attempt: int,
    state: TrainState,
    flag: PreemptionFlag,
    log: IO[str] | None,
) -> contextlib.AbstractContextManager[object]:
    """The watch over this rank while the block trains; nothing where `recovery.hang_seconds` switches it off.

    Args:
        log: gets the Python stacks.
    """
    seconds = config.recovery.hang_seconds
    if seconds == 0 or (seconds is None and world.size == 1):
        return contextlib.nullcontext()
    others = watch()
    return HangWatch(
        world.rank,
        others,
        [socket.gethostname()] if others is None else others.hosts,
        progress=lambda: (state.beats, flag.polls),
        limit=_limit(seconds, state),
        where=lambda: _where(state),
        log=log,
        end=_Ending(run, world, attempt, state, log),
    )


def _limit(seconds: float | None, state: TrainState) -> Callable[[float], float | None]:
    def limit(longest: float) -> float | None:
        if seconds is None:
            # How long the documents of an evaluation take, and whether it asks on the way, is its own matter.
            return None if state.evaluating else max(ADAPTIVE_SECONDS, ADAPTIVE_FACTOR * longest)
        return seconds * (FIRST_STEP_FACTOR if state.step == state.first else 1)

    return limit


def _where(state: TrainState) -> Standing:
    return standing(state.step + state.in_step, state.place, state.phase)


class _Ending:
    """Ends this process: one rank says why, and outcome.json and all logs have it too."""

    def __init__(self, run: RunDirectory, world: World, attempt: int, state: TrainState, log: IO[str] | None) -> None:
        self._run, self._world, self._attempt, self._state, self._log = run, world, attempt, state, log

    def __call__(self, verdict: str, late: list[int], first: bool) -> None:
        """`first`: nobody has heard of it yet, as far as this rank knows."""
        checkpoint = self._run.newest_step()
        saved = f"the newest checkpoint is of step {checkpoint}" if checkpoint else "there is no checkpoint yet"
        text = f"{verdict}; {saved}; the Python stacks of all ranks that answer are in {self._run.logs}"
        with contextlib.suppress(Exception):  # nothing may keep this process from its end
            logging.getLogger("llmscale").error("%s", text)
            if first and (self._world.rank == 0 or speaks_first(self._run, self._world, self._attempt, "hung")):
                self._run.record_outcome(
                    "failed",
                    attempt=self._attempt,
                    reason=text,
                    step=self._state.step,
                    checkpoint=checkpoint,
                    hung=late,
                )
                if self._world.rank == 0 or not launcher_tells():
                    tell(f"llmscale: {text}")
        os._exit(HUNG)
