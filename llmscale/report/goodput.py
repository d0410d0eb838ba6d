"""What the wall time of a run went into, over all of its attempts, read without torch.

`time.jsonl` has rows of three sorts, each by rank 0. The first of an attempt says when its process began and when the
run last gave a sign of life before that; the second which step it continues from; the others, written with each
checkpoint, every minute and at the end, how many seconds this attempt has spent on what until then.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.base.records import read_every_record

TIME_FILE = "time.jsonl"
SUBMITTED = "LLMSCALE_SUBMITTED"
"""Variable: when a scheduler was given the job, in seconds since the epoch."""
START_UP = "start_up"
COMPUTE, DATA, CHECKPOINT, EVALUATION, OTHER = "compute", "data", "checkpoint", "evaluation", "other"
LOST, WAITING = "lost", "waiting"
ACTIVITIES = (START_UP, COMPUTE, DATA, CHECKPOINT, EVALUATION, OTHER)
"""What an attempt spends its time on. `other`: logging, the ledger, the end of the run."""


@dataclass(frozen=True)
class Goodput:
    """Seconds by what they went into; they add up to `wall`."""

    seconds: dict[str, float]
    """The `ACTIVITIES`; `lost`: work after the checkpoint that a later attempt continued from; `waiting`: in the queue,
    or for somebody to start the run again."""
    attempts: int

    @property
    def wall(self) -> float:
        """From the submission, or the first start, to the last sign of life."""
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """Share of the wall time that went into steps that count."""
        return self.seconds[COMPUTE] / self.wall if self.wall > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """As summary.json has it."""
        rounded = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return {"fraction": round(self.fraction, 4), "attempts": self.attempts, "seconds": rounded}


@dataclass
class _Attempt:
    """One start of the run, as its rows say."""

    began: float
    """Seconds since the epoch at which its process started."""
    before: float
    """The last sign of life of the run before; that of the submission before the first."""
    resumes: int | None
    """The step that it continued from; None where it ended before it knew."""
    rows: list[dict[str, Any]]
    """Those with `seconds`, in their order, the one of `resumes` first."""


def read_goodput(run: Path) -> Goodput | None:
    """Goodput of a run directory; None where the run has kept no time, as before this file was written."""
    rows = [row for row in read_every_record(run / TIME_FILE) if _is_sound(row)]
    by_attempt = itertools.groupby(sorted(rows, key=lambda row: row["attempt"]), lambda row: row["attempt"])
    attempts = [attempt for _, group in by_attempt if (attempt := _attempt(list(group))) is not None]
    if not attempts:
        return None
    seconds = dict.fromkeys((*ACTIVITIES, LOST, WAITING), 0.0)
    # What comes after the earliest step that a later attempt continued from was done in vain.
    kept_until = float("inf")
    following: _Attempt | None = None
    for attempt in reversed(attempts):
        for name, value in _spent(attempt, following, kept_until).items():
            seconds[name] += value
        if attempt.resumes is not None:
            kept_until = min(kept_until, attempt.resumes)
        following = attempt
    return Goodput(seconds, len(attempts))


def longest_save(run: str | Path) -> float:
    """The most seconds that training stood still for a checkpoint, as far as the rows tell; 0 where none was saved."""
    spent = [
        (row["attempt"], row["seconds"][CHECKPOINT])
        for row in read_every_record(Path(run) / TIME_FILE)
        if _is_sound(row) and "seconds" in row
    ]
    pairs = itertools.pairwise(spent)
    return max((after - before for (one, before), (other, after) in pairs if one == other), default=0.0)


def _spent(attempt: _Attempt, following: _Attempt | None, kept_until: float) -> dict[str, float]:
    """Seconds of one attempt and of the wait before it. `following`: the next attempt."""
    waiting = max(0.0, attempt.began - attempt.before)
    last = attempt.rows[-1]["time"] if attempt.rows else attempt.began
    end = last if following is None else max(last, min(following.before, following.began))
    if not attempt.rows:
        return {START_UP: max(0.0, end - attempt.began), WAITING: waiting}
    kept = [row for row in attempt.rows if row["step"] <= kept_until]
    row = kept[-1] if kept else attempt.rows[0]
    # The row of the checkpoint that counts is kept; where nobody has continued yet, nothing is lost so far.
    rest = OTHER if kept_until == float("inf") else LOST
    spent = {**dict.fromkeys((LOST, OTHER), 0.0), **row["seconds"], WAITING: waiting}
    spent[rest] += max(0.0, end - row["time"])
    return spent


def _attempt(rows: list[dict[str, Any]]) -> _Attempt | None:
    first = next((row for row in rows if "began" in row), None)
    if first is None:
        return None
    timed = [row for row in rows if "seconds" in row]
    resumes = next((row["step"] for row in rows if row.get("resumes")), None)
    return _Attempt(first["began"], first["before"], resumes, timed)


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether a row has what the sums need."""
    numbers = [row.get("time"), *(row[name] for name in ("began", "before") if name in row)]
    if "began" in row and "before" not in row:
        return False
    if "seconds" in row:
        spent = row["seconds"]
        if not isinstance(spent, dict) or set(spent) != set(ACTIVITIES):
            return False
        numbers += spent.values()
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
