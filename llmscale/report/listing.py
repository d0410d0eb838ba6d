"""`llmscale runs`: where runs stand, from their directories alone and without torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.base.durable import read_json, read_text
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import newest_record, read_every_record
from llmscale.config.yaml_files import load_yaml
from llmscale.report.goodput import TIME_FILE, read_goodput

_SIGNS = ("outcome.json", "metrics.jsonl", "ledger.jsonl", TIME_FILE)
"""What a run writes while it goes on; a folder with the first and a config.yaml is a run."""
_SKIPPED = {"checkpoints", "ledger", "logs", "cache", "tokenizer", "report", "profile", "quarantine", "snapshots"}
_DEPTH = 3
"""Levels below the given folder at which runs are looked for."""
_SILENT_SECONDS = 600.0
"""Where nobody can tell whether a process holds the run, one that wrote nothing for so long is not running."""


@dataclass(frozen=True)
class RunStatus:
    """One run, as a row of the list. None: not known."""

    run: str
    """Its directory."""
    state: str
    """done, preempted, failed, running, or killed: it says that it runs, but no process has it."""
    reason: str | None
    """Why it failed."""
    step: int
    steps: int | None
    """To train in all."""
    loss: float | None
    """Of the last logged step, nats per target token."""
    tokens_per_second: float | None
    mfu: float | None
    job: str | None
    """Slurm's number of the last attempt's job."""
    restarts: int
    goodput: float | None
    """Share of the wall time of all attempts that went into steps that count."""
    age: float
    """Seconds since its last sign of life."""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def list_runs(folder: Path) -> list[RunStatus]:
    """The runs at or below a folder, that with the newest sign of life first.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a run directory, or a folder with some in it")
    runs = [read_status(path) for path in _find(folder, _DEPTH)]
    if not runs:
        raise UserError(f"{folder} is no run directory, and none is up to {_DEPTH} levels below it; give another DIR")
    return sorted(runs, key=lambda run: run.age)


def _find(folder: Path, depth: int) -> list[Path]:
    try:
        if (folder / "config.yaml").is_file() and any((folder / name).exists() for name in _SIGNS):
            return [folder]
        if not depth:
            return []
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    children = (Path(path) for path in below)
    return [
        run
        for child in children
        if child.name not in _SKIPPED and not child.name.startswith(".")
        for run in _find(child, depth - 1)
    ]


def read_status(run: Path) -> RunStatus:
    """Where one run stands."""
    outcome = read_json(run / "outcome.json")
    outcome = outcome if isinstance(outcome, dict) else {}
    logged = newest_record(run / "metrics.jsonl", having="loss") or {}
    trained = newest_record(run / "ledger.jsonl", having="step") or {}
    begun = [row for row in read_every_record(run / TIME_FILE) if "began" in row]
    goodput = read_goodput(run)
    age = max(0.0, time.time() - max(map(_modified, (run / name for name in _SIGNS))))
    state = str(outcome.get("outcome", "unknown"))
    steps = [_whole(value) for value in (trained.get("step"), logged.get("step"), outcome.get("step"))]
    attempt = _whole(outcome.get("attempt")) or len(begun) or 1
    return RunStatus(
        run=str(run),
        state=_running(run, age) if state == "running" else state,
        reason=str(outcome["reason"]) if "reason" in outcome else None,
        step=max(steps),
        steps=_steps(run),
        loss=_number(logged.get("loss")),
        tokens_per_second=_number(logged.get("tokens_per_second")),
        mfu=_number(logged.get("mfu")),
        job=str(begun[-1]["job"]) if begun and begun[-1].get("job") else None,
        restarts=attempt - 1,
        goodput=None if goodput is None else goodput.fraction,
        age=age,
    )


def _running(run: Path, age: float) -> str:
    """Whether a run that says so has a process: who trains holds a lock on it, on whatever machine."""
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        descriptor = os.open(run / ".lock", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        held = error.errno not in (errno.ENOENT,) and age < _SILENT_SECONDS
        return "running" if held else "killed"
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, lock)
        held = struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK
    except OSError:  # a file system that knows no locks
        held = age < _SILENT_SECONDS
    finally:
        os.close(descriptor)
    return "running" if held else "killed"


def _steps(run: Path) -> int | None:
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        config = load_yaml(read_text(run / "config.yaml"))
        train = config.get("train") if isinstance(config, dict) else None
        if isinstance(train, dict) and train.get("epochs") is None:
            return _whole(train.get("steps")) or None
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_COLUMNS = ("run", "state", "step", "loss", "tokens/s", "MFU", "job", "restarts", "goodput", "last sign")


def as_table(runs: list[RunStatus]) -> str:
    """The list for people: aligned columns, then why runs have failed."""
    rows = [_COLUMNS, *(_cells(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    left = {0, 1, 6}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *(f"{_on_a_line(run.run)}: {_on_a_line(run.reason)}" for run in runs if run.reason)])


def _on_a_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _cells(run: RunStatus) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        _on_a_line(run.run),
        _on_a_line(run.state),
        f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
        shown(run.loss, ".4f"),
        shown(run.tokens_per_second, ",.0f"),
        shown(run.mfu, ".1%"),
        run.job or "-",
        str(run.restarts),
        shown(run.goodput, ".1%"),
        f"{age_text(run.age)} ago",
    )


def age_text(seconds: float) -> str:
    """A time that has passed, in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
