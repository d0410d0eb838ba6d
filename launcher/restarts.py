"""Starting ranks again after one has failed: how often, and when not."""

import contextlib

from data_pipeline.base.records import newest_record, read_every_record
from data_pipeline.base.terminal import tell
from llmscale.distributed.exit_codes import PREEMPTED, USER_MISTAKE
from llmscale.train.run_directory import RunDirectory

MOST_IDLE_FAILURES = 3
"""So many failures in a row without a step that no attempt had done before are a crash loop."""


class Restarts:
    """Counts failures of a run and decides after each whether to start its ranks again."""

    def __init__(self, run: RunDirectory, most: int) -> None:
        """`most`: restarts of this launch at most."""
        self._run, self._most = run, most
        self._done = 0
        self._idle = 0
        self._furthest = 0
        with contextlib.suppress(OSError):  # which the ranks, or nobody, will complain of
            self._furthest = max((row["step"] for row in read_every_record(run.ledger)), default=0) if most else 0

    def again(self, code: int) -> bool:
        """Whether to start the ranks again after an end with `code`; says so, or why not where restarts were asked for.

        Ends that are well, preempted, or a user's mistake, which would only be met again, are no failures.
        """
        if code in (0, PREEMPTED, USER_MISTAKE) or not self._most:
            return False
        step = (newest_record(self._run.ledger, having="step") or {"step": 0})["step"]
        self._idle = 0 if step > self._furthest else self._idle + 1
        self._furthest = max(self._furthest, step)
        if self._idle >= MOST_IDLE_FAILURES:
            self._stop(
                f"{self._idle} failures in a row came before any step after step {self._furthest}, so that another"
                f" restart would only fail again"
            )
            return False
        if self._done >= self._most:
            self._stop(f"all {self._most} restarts are used")
            return False
        self._done += 1
        checkpoint = self._run.newest_step()
        place = f"from the checkpoint of step {checkpoint}" if checkpoint else "from step 0, since none was saved"
        tell(f"llmscale: restart {self._done} of {self._most}, {place}")
        return True

    def _stop(self, why: str) -> None:
        """Say why it ends here, in outcome.json after the reason of the last failure too."""
        tell(f"llmscale: no restart: {why}")
        outcome = self._run.outcome()
        if outcome.get("outcome") == "failed":
            details = {key: value for key, value in outcome.items() if key not in ("outcome", "time", "saved")}
            reason = f"{details.get('reason', 'a rank failed')}; no restart: {why}"
            self._run.saved = outcome.get("saved", 0)
            self._run.record_outcome("failed", **{**details, "reason": reason})
