"""What a rank says, and records, when another has died."""

from __future__ import annotations

import contextlib
import logging
import sys
import time

from llmscale.distributed.exit_codes import FAILED, PREEMPTED
from llmscale.distributed.process_group import LostRankError, World, launcher_tells
from llmscale.distributed.watch import Loss
from llmscale.train.run_directory import RunDirectory
from llmscale.train.signals import PreemptionFlag
from llmscale.train.state import TrainState

_TURN_SECONDS = 0.1
_LONGEST_TURN = 3.0


def speaks_first(run: RunDirectory, world: World, attempt: int, mark: str) -> bool:
    """Where rank 0 cannot: whether no other rank has recorded in outcome.json, under `mark`, what is to be said. Ranks
    take turns in their order."""
    time.sleep(min(_TURN_SECONDS * (world.rank - 1), _LONGEST_TURN))
    recorded = run.outcome()
    return not (recorded.get("attempt") == attempt and mark in recorded)


class LossReport:
    """Sees to it that one rank tells of a loss, and that outcome.json says the same."""

    def __init__(self, run: RunDirectory, world: World, attempt: int, flag: PreemptionFlag) -> None:
        self._run, self._world, self._flag = run, world, flag
        self.attempt = attempt
        self.state: TrainState | None = None
        """Once there is one."""

    @property
    def preempted(self) -> bool:
        """Whether all ranks have agreed that a preemption signal has come."""
        return self.state is not None and self.state.preempted

    @property
    def excused(self) -> bool:
        """A preemption signal has come and there is nothing to save, so that ranks end as they hear it."""
        # The rank that the signal ended at once may have been in its first step still, which this one has done.
        unsaved = self.state is None or self.state.step <= self.state.first + 1
        return self._flag.raised and unsaved

    def tell(self, error: LostRankError) -> None:
        """Complete the sentence of `error`; note in it whether somebody else says it."""
        step = 0 if self.state is None else self.state.step
        checkpoint = self._run.newest_step()
        saved = f"the newest checkpoint is of step {checkpoint}" if checkpoint else "there is no checkpoint yet"
        error.args = (f"{error} after step {step}; {saved}",)
        logging.getLogger("llmscale").error("%s", error)
        if error.loss is None:
            if self._world.rank == 0:
                self._record(error, step, checkpoint)
            return
        first = self._speaks_first(error.loss)
        if first:
            self._record(error, step, checkpoint)
        error.told = launcher_tells() or not first

    def on_stuck(self, loss: Loss) -> int:
        """What to exit with where the main thread waits for a rank that is gone; says why."""
        if self.excused:
            return PREEMPTED
        error = LostRankError(loss)
        self.tell(error)
        if not error.told:
            who = f"rank {self._world.rank}: " if self._world.rank else ""
            print(f"llmscale: {who}{error}", file=sys.stderr, flush=True)
        return FAILED

    def _speaks_first(self, loss: Loss) -> bool:
        """Rank 0 speaks, or where it is the one that died, whichever other comes first in the order of ranks."""
        if loss.rank != 0 or self._world.rank == 0:
            return self._world.rank == 0
        return speaks_first(self._run, self._world, self.attempt, "lost")

    def _record(self, error: LostRankError, step: int, checkpoint: int) -> None:
        lost = error.loss
        details = {} if lost is None else {"lost": {"rank": lost.rank, "node": lost.host, "signal": None}}
        with contextlib.suppress(OSError):
            self._run.record_outcome(
                "failed", attempt=self.attempt, reason=str(error), step=step, checkpoint=checkpoint, **details
            )
