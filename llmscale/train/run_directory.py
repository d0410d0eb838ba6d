"""The folder of a run: its files, who may write to it, and which attempt this is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import UserError, writing
from data_pipeline.records import read_records, strict
from llmscale.config import RunConfig, dump_config, identity, load_config, override_word, require_same_identity

Outcome = Literal["running", "done", "preempted", "failed"]


class RunDirectory:
    """Paths below a run's folder, and its outcome file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.cache = self.path / "cache"
        self.logs = self.path / "logs"
        self.quarantine = self.path / "quarantine"
        self.report = self.path / "report"
        self.outcome_file = self.path / "outcome.json"
        self.summary_file = self.path / "summary.json"

    def outcome(self) -> dict[str, Any]:
        """The last recorded outcome; empty before the first start."""
        try:
            return json.loads(self.outcome_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def record_outcome(self, outcome: Outcome, **details: Any) -> None:
        """Replace outcome.json atomically."""
        write_json(self.outcome_file, {"outcome": outcome, "time": time.time(), **details})

    def require_same_run(self, config: RunConfig) -> None:
        """Refuse a folder that belongs to another run, or to something else than a run.

        Raises:
            UserError: names what differs and the way out. Nothing has been written then.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"run.directory {self.path} is a file; name a folder")
        if self.config_file.exists():
            recorded = load_config(self.config_file)
            if not self.has_progress():
                return
            require_same_identity(config, identity(recorded), str(self.path))
            _require_extensible(config, recorded, self)
        elif any(entry.name not in ("logs", ".lock", "tokenizer") for entry in self.path.iterdir()):
            raise UserError(
                f"run.directory {self.path} has files but no config.yaml, so it is no run; name an empty or new folder"
            )

    def has_progress(self) -> bool:
        """A step was trained here. Before that, nothing is lost when the config changes."""
        return bool(read_records(self.ledger)) or self.newest_step() > 0

    def newest_step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        names = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def create(self, config: RunConfig) -> None:
        """Make the folder and write the resolved config.

        What was prepared for another config, before any step was trained, is cleared away.
        """
        if self.config_file.exists() and not self.has_progress() and load_config(self.config_file) != config:
            for folder in (self.tokenizer, self.cache):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.path, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, dump_config(config))

    def begin_attempt(self) -> int:
        """Number of this start of the run, from 1, recorded before anything else is written."""
        recorded = [int(row["attempt"]) for row in read_records(self.ledger)]
        attempt = max([int(self.outcome().get("attempt", 0)), *recorded]) + 1
        self.record_outcome("running", attempt=attempt)
        return attempt

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while training; a second trainer on it is refused. A killed process lets go by itself."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as handle:
            try:
                # Unlike flock's, it is not shared with loader workers, which outlive a killed trainer for seconds.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(
                    f"another process is training in {self.path}; wait for it, or name another run.directory"
                ) from None
            except OSError:
                # Some network file systems know no locks; training there must still work.
                pass
            yield


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with writing(path):
            # A file name that is not UTF-8 holds lone surrogates, which JSON can only escape.
            with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _require_extensible(config: RunConfig, recorded: RunConfig, run: RunDirectory) -> None:
    """More steps change nothing of what was done, unless the decay of wsd had begun."""
    if config.schedule.name != "wsd" or config.train.steps == recorded.train.steps:
        return
    done = run.newest_step()
    decay_start = recorded.train.steps - recorded.schedule.decay_steps
    if done > decay_start:
        raise UserError(
            f"{run.path} is at step {done} and its decay began at step {decay_start}, so train.steps cannot change"
            f" from {recorded.train.steps} to {config.train.steps}; start a new run with"
            f" {override_word('train.init_from', run.path)}"
        )
