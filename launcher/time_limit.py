"""Time limits of Slurm jobs, and the signal that comes before them."""

import contextlib
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from data_pipeline.base.errors import UserError

DEFAULT_LEAD = 60
"""Seconds between signal and limit where `--signal` names none (sbatch's manual)."""

_PASSED_ON = ("USR1", "10")
_HEEDED = (*_PASSED_ON, "TERM", "15", "HUP", "1")
"""Signals by name and by Linux's number: those that the batch script passes on, and those at which ranks save."""


def limit_seconds(text: str) -> int | None:
    """Seconds of a time limit as sbatch takes and scontrol prints it; None where it sets none.

    sbatch's forms are `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` and
    `days-hours:minutes:seconds`; it rounds up to whole minutes.

    Raises:
        UserError: the text is none of these.
    """
    text = text.strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "-1", "0", "PARTITION_LIMIT", "NOT_SET"):
        return None
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise UserError(f"time limit '{text}' is none that sbatch knows; write it as 24:00:00, 1-12 or minutes")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return (
        -(-total // 60) * 60 or None
    )  # "A time limit of zero requests that no time limit be imposed" (sbatch's manual)


def lead_seconds(option: str) -> int:
    """Seconds before the limit at which the signal of `--signal=OPTION` comes: `[{R|B|RB}:]SIGNAL[@SECONDS]`."""
    seconds = option.partition("@")[2]
    return int(seconds) if seconds.isdecimal() else DEFAULT_LEAD


def require_heeded(option: str) -> None:
    """Refuse a `--signal=OPTION` that would end the ranks, or miss them, instead of letting them save.

    Raises:
        UserError: names it and what to write.
    """
    target, _, told = option.rpartition(":")
    signal = told.partition("@")[0].upper().removeprefix("SIG")
    lead = lead_seconds(option)
    if "B" in target.upper() and signal not in _PASSED_ON:
        raise UserError(
            f"--signal is {option}, of which the batch script passes on nothing to the ranks; write"
            f" --signal=USR1@{lead}"
        )
    if signal not in _HEEDED:
        raise UserError(
            f"--signal is {option}, at which ranks do not save, as they do at USR1 and TERM; write --signal=USR1@{lead}"
        )


def script_lead(script: Path) -> int:
    """The lead of a batch script's own `#SBATCH --signal` line; 0 where it has none."""
    found = re.findall(r"^#SBATCH\s+--signal[=\s]\s*(\S+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    return lead_seconds(found[-1]) if found else 0


def require_lead_below(limit: int | None, lead: int) -> None:
    """Refuse a limit, in seconds, that the signal would come before: the ranks would save and leave as they start.

    Raises:
        UserError: names both.
    """
    if limit is not None and limit <= lead:
        raise UserError(
            f"the time limit of {limit} s (--time) is not above the {lead} s before it at which the ranks are told to"
            f" save (--signal); give a longer --time, or a shorter lead, by SBATCH_SIGNAL=USR1@{limit // 3} in the"
            f" environment of sbatch or by `launch slurm ... -- --signal=USR1@{limit // 3}`"
        )


def require_room(job: str, script: Path, environment: Mapping[str, str], lead: int | None = None) -> None:
    """Refuse a running job whose time limit is not above the signal's lead, as far as one can know that from within.

    The command line of sbatch wins over SBATCH_SIGNAL, and that over the script; but of the command line Slurm tells
    only where it keeps accounts.

    Args:
        job: its number.
        script: the batch script, for its `#SBATCH --signal` line.
        environment: the job's, for SBATCH_SIGNAL.
        lead: seconds, where somebody knows better.

    Raises:
        UserError: names both.
    """
    found = re.search(r"\sTimeLimit=(\S+)", _answer("scontrol", "--oneliner", "show", "job", job))
    limit = limit_seconds(found[1]) if found else None
    if lead is None:
        option = environment.get("SBATCH_SIGNAL", "")
        lead = lead_seconds(option) if option else script_lead(script)
        if limit is not None and limit <= lead:
            options = ["--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=SubmitLine"]
            given = re.findall(r"\s--signal[=\s]\s*'?([^\s']+)", _answer("sacct", *options))
            lead = lead_seconds(given[-1]) if given else lead
    require_lead_below(limit, lead)


def submitted(job: str) -> float | None:
    """When a job was put into the queue, in seconds since the epoch; None where Slurm does not say."""
    found = re.search(r"\sSubmitTime=(\S+)", _answer("scontrol", "--oneliner", "show", "job", job))
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(found[1]).timestamp() if found else None
    return None


def tasks(job: str) -> int | None:
    """How many tasks a job has by now, whatever it was submitted with; None where Slurm does not say."""
    found = re.search(r"\sNumTasks=(\d+)\s", _answer("scontrol", "--oneliner", "show", "job", job))
    return int(found[1]) if found else None


def _answer(*command: str) -> str:
    """Stdout of one of Slurm's commands; empty where it is missing, as it is in containers, or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
