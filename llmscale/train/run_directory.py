"""The folder of a run: its files, who may write to it, and which attempt this is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from data_pipeline.base.durable import parse_json, read_file, read_text, replace_file, unlinked, write_json
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import Extent, extent_of, strict
from llmscale.checkpoint import CorruptCheckpoint, find_checkpoints
from llmscale.checkpoint.manifest import read_manifest
from llmscale.checkpoint.members import Identity, identity_of, own_checkpoints, why_stranger
from llmscale.checkpoint.store import LATEST, discard, step_of
from llmscale.config import (
    RunConfig,
    dump_config,
    identity,
    load_config,
    override_word,
    parse_config,
    require_same_identity,
)
from llmscale.distributed.exit_codes import PREEMPTED
from llmscale.report.goodput import TIME_FILE

Outcome = Literal["running", "done", "preempted", "failed"]

_OWN = re.compile(
    r"config\.yaml|(metrics|ledger|time|recoveries)\.jsonl|(outcome|summary|trackers)\.json|ledger|checkpoints|tokenizer|cache|logs|quarantine"
    r"|report|profile|snapshots|aside-\d+|\.lock|\.shared-.*|\.tmp-.*|\.tokenizer-.*"
)
"""What a run names its files and folders."""
_APART_SECONDS = 60.0
"""How far the clocks of a run's nodes may be apart."""


class RunDirectory:
    """Paths below a run's folder, and its outcome file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.time = self.path / TIME_FILE
        self.recoveries = self.path / "recoveries.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.cache = self.path / "cache"
        self.logs = self.path / "logs"
        self.quarantine = self.path / "quarantine"
        self.report = self.path / "report"
        self.outcome_file = self.path / "outcome.json"
        self.summary_file = self.path / "summary.json"
        self.trackers_file = self.path / "trackers.json"
        self.saved = 0
        """The newest step that was saved, as far as this start knows."""
        self._recorded: tuple[Outcome, dict[str, Any]] | None = None
        self._writing = threading.Lock()
        self._extents: dict[Path, Extent] = {}

    def outcome(self) -> dict[str, Any]:
        """The last recorded outcome; empty before the first start, and where the file is damaged."""
        try:
            found = parse_json(read_file(self.outcome_file))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        check = found.pop("check", None)
        if check is not None and check != _checksum(found):
            return {}
        numbers = all(isinstance(found.get(key, 0), int) for key in ("attempt", "step", "saved"))
        return found if numbers and isinstance(found.get("time", 0.0), int | float) else {}

    def brought_to_end(self, since: float) -> int | None:
        """The exit code that a start of this run has earned after the time `since`, where it has recorded an end by
        which nothing is lost; what a rank does later, as when it lets go of a device, changes nothing of it."""
        outcome = self.outcome()
        if not since <= outcome.get("time", 0) <= time.time() + _APART_SECONDS:
            return None
        return {"done": 0, "preempted": PREEMPTED}.get(outcome.get("outcome", ""))

    def is_finished(self, config: RunConfig) -> bool:
        """Whether it has made all of a config's steps, or has stopped before for good."""
        outcome = self.outcome()
        # With epochs the steps follow from the data, which the identity covers.
        wanted = 0 if config.train.epochs is not None else config.train.steps
        return outcome.get("outcome") == "done" and bool(outcome.get("step", 0) >= wanted or outcome.get("stopped"))

    def record_outcome(self, outcome: Outcome, **details: Any) -> None:
        """Replace outcome.json atomically. It goes on saying which step was saved last."""
        with self._writing:
            value = strict({"outcome": outcome, "time": time.time(), **details, "saved": self.saved})
            self._recorded = outcome, details
            write_json(self.outcome_file, {**value, "check": _checksum(value)})

    def note_saved(self, step: int) -> None:
        """Remember that a step has become a checkpoint: a later start that finds none does not begin at step 0."""
        self.saved = step
        if self._recorded is not None and self._recorded[0] == "running":
            with contextlib.suppress(OSError):  # the checkpoint is what counts
                self.record_outcome(self._recorded[0], **self._recorded[1])

    def require_same_run(self, config: RunConfig) -> list[str]:
        """Refuse a folder that belongs to another run, or to something else than a run.

        Returns:
            What is damaged in it and will be repaired, in sentences.

        Raises:
            UserError: names what differs and the way out. Nothing has been written then.
        """
        if not self.path.exists():
            return []
        if not self.path.is_dir():
            raise UserError(f"run.directory {self.path} is a file; name a folder")
        recorded, problem = self._recorded_config()
        current = identity(config)
        own = self.config_file.exists() or self._holds_only_own()
        if not own and next(own_checkpoints(self.checkpoints, current), None) is None:
            raise UserError(
                f"run.directory {self.path} has files but no config.yaml, so it is no run; name an empty or new folder"
            )
        if not self.has_progress():
            return []
        repaired = []
        if self.outcome_file.exists() and not self.outcome():
            repaired.append(f"{self.outcome_file} is damaged; the records and checkpoints say which attempt this is")
        repaired += self._lost_records(current)
        if recorded is None or identity(recorded) != current:
            # A checkpoint knows better, since every bit of it is checked.
            said = identity(recorded) if recorded is not None else None
            theirs = [(identity_of(manifest), manifest) for _, manifest in own_checkpoints(self.checkpoints)]
            if any(found == current for found, _ in theirs) and all(found != said for found, _ in theirs):
                repaired.append(f"{self.config_file} is {problem or 'damaged'}; it is written as a checkpoint has it")
            elif said is not None:
                require_same_identity(config, dict(said), str(self.path))
            elif theirs:
                require_same_identity(config, dict(theirs[0][0]), str(self.path))
            else:
                repaired.append(f"{self.config_file} is {problem}; it is written again from the config given")
        self._require_extensible(config, recorded)
        return repaired

    def _recorded_config(self) -> tuple[RunConfig | None, str]:
        """What config.yaml says; or None, and what is wrong with it."""
        if not self.config_file.exists():
            return None, "missing"
        try:
            return load_config(self.config_file), ""
        except UserError as error:
            return None, f"damaged ({error})"

    def _lost_records(self, run: Identity) -> list[str]:
        """What the records lack, in sentences: damaged lines, and steps that a checkpoint has seen."""
        lost = []
        for path in (self.ledger, self.metrics):
            if damaged := self._extent(path).damaged:
                lost.append(f"{path} has {damaged} damaged line(s), which are left out")
        last = self._extent(self.ledger).last
        newest = next((manifest.step for _, manifest in own_checkpoints(self.checkpoints, run)), 0)
        if newest > last:
            lost.append(
                f"{self.ledger} ends at step {last}, but a checkpoint is of step {newest}; nothing tells what"
                f" the steps between were trained on"
            )
        return lost

    def _holds_only_own(self) -> bool:
        """Whether everything in the folder may be what a start of a run made, or a launcher before it."""
        if any(not _OWN.fullmatch(entry.name) for entry in self.path.iterdir()):
            return False
        checkpoints = self.checkpoints.iterdir() if self.checkpoints.is_dir() else iter(())
        return all(re.fullmatch(r"latest|\.tmp-.*|(aside-)?step-\d.*", entry.name) for entry in checkpoints)

    def has_progress(self) -> bool:
        """A step was trained here. Before that, nothing is lost when the config changes."""
        return self._extent(self.ledger).last > 0 or bool(self.candidates())

    def _extent(self, records: Path) -> Extent:
        """`extent_of` the records of before this start, which is read once, since there may be many."""
        if records not in self._extents:
            self._extents[records] = extent_of(records)
        return self._extents[records]

    def candidates(self) -> list[Path]:
        """Folders that are named as checkpoints, newest first, whatever they are."""
        return find_checkpoints(self.checkpoints) if self.checkpoints.is_dir() else []

    def newest_step(self) -> int:
        """Step of the newest checkpoint whose manifest is intact; 0 without one."""
        return next((manifest.step for _, manifest in own_checkpoints(self.checkpoints)), 0)

    def known_saved(self, config: RunConfig) -> int:
        """A step that was saved once, as far as anything but an intact checkpoint tells; 0 where nothing says so."""
        ledger, metrics = self._extent(self.ledger), self._extent(self.metrics)
        trained = max(ledger.last, metrics.last)
        if trained and not self.checkpoints.is_dir():  # which is there before the first step
            return trained
        outcome = self.outcome()
        ended = outcome.get("step", 0) if outcome.get("outcome") in ("done", "preempted") else 0
        latest = 0
        with contextlib.suppress(OSError, ValueError):
            latest = int(read_text(self.checkpoints / LATEST).strip().removeprefix("step-"))
        continued = max(ledger.continued, metrics.continued)
        due = 0 if "saved" in outcome or self.candidates() else self._due(trained, config)
        return max(outcome.get("saved", 0), ended, latest, continued, due, self._damaged_step(identity(config)))

    def _due(self, trained: int, config: RunConfig) -> int:
        """The newest step up to `trained` whose checkpoint should be there; 0 where the first was being written."""
        interval = (self._recorded_config()[0] or config).checkpoint.interval
        if not interval or any(self.checkpoints.glob(".tmp-*")):
            return 0
        return trained - trained % interval

    def _damaged_step(self, run: Identity) -> int:
        """The step after which the newest checkpoint is named, damaged or not, that is no stranger."""
        for folder in self.candidates():
            try:
                if why_stranger(folder, read_manifest(folder), run) is not None:
                    continue
            except CorruptCheckpoint:
                pass
            return step_of(folder)
        return 0

    def require_checkpoint(self, reasons: list[str]) -> None:
        """Refuse to start from scratch where a step was saved once, since a run that is lost is not to be overwritten.

        Args:
            reasons: why no checkpoint that is there can be used.

        Raises:
            UserError: which step was reached, why it cannot go on, and what to do.
        """
        if not self.saved:
            return
        why = "; ".join(reasons) or f"{self.checkpoints} holds none"
        raise UserError(
            f"{self.path} has been saved at step {self.saved}, but no checkpoint can be used: {why}; put"
            f" {self.checkpoints} back from a copy, or begin at step 0 by `train --from-scratch` (under a"
            f" launcher by LLMSCALE_FROM_SCRATCH=1), which keeps what is here in {self._free_aside()}"
        )

    def set_aside(self) -> Path:
        """Move checkpoints, records and results of before into a new folder, so that the run begins at step 0."""
        aside = self._free_aside()
        aside.mkdir()
        folders = (self.checkpoints, self.path / "ledger", self.report)
        for path in (*folders, self.ledger, self.metrics, self.recoveries, self.summary_file):
            if os.path.lexists(path):
                path.rename(aside / path.name)
        self.checkpoints.mkdir()
        self.saved = 0
        return aside

    def _free_aside(self) -> Path:
        return next(path for number in count(1) if not (path := self.path / f"aside-{number}").exists())

    def create(self, config: RunConfig) -> None:
        """Make the folder and write the resolved config; clear away what a killed start was about to write.

        What was prepared for another config, before any step was trained, is cleared away too.
        """
        for path in self.path.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if self.config_file.exists() and not self.has_progress() and self._recorded_config()[0] != config:
            for folder in (self.tokenizer, self.cache):
                discard(folder)
        if self.logs.is_symlink():
            raise UserError(f"{self.logs} is a symbolic link, which is not followed; remove it")
        for folder in (self.path, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.config_file, dump_config(config).encode(errors="backslashreplace"), durable=True)

    def last_sign_of_life(self) -> float | None:
        """When an attempt last wrote something, in seconds since the epoch; None where none has."""
        times = []
        for path in (self.time, self.ledger, self.metrics, self.outcome_file):
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times, default=None)

    def begin_attempt(self) -> int:
        """Number of this start of the run, from 1, recorded before anything else is written."""
        recorded = [self._extent(path).attempt for path in (self.ledger, self.metrics)]
        recorded += [manifest.attempt for _, manifest in islice(own_checkpoints(self.checkpoints), 1)]
        attempt = max([int(self.outcome().get("attempt", 0)), *recorded]) + 1
        self.record_outcome("running", attempt=attempt)
        return attempt

    def _require_extensible(self, config: RunConfig, recorded: RunConfig | None) -> None:
        """More steps change nothing of what was done, unless the decay of wsd had begun."""
        newest = next(own_checkpoints(self.checkpoints, identity(config)), None)
        if newest is not None and newest[1].config:
            with contextlib.suppress(UserError):  # a version with other settings
                recorded = parse_config(dict(newest[1].config))
        if recorded is None or config.schedule.name != "wsd" or config.train.steps == recorded.train.steps:
            return
        done = newest[1].step if newest is not None else 0
        decay_start = recorded.train.steps - recorded.schedule.decay_steps
        if done > decay_start:
            raise UserError(
                f"{self.path} is at step {done} and its decay began at step {decay_start}, so train.steps cannot change"
                f" from {recorded.train.steps} to {config.train.steps}; start a new run with"
                f" {override_word('train.init_from', self.path)}"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while training; a second trainer on it is refused. A killed process lets go by itself."""
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                # A link there is not followed, and what the file held, which is nothing, is left.
                handle = stack.enter_context(open(self.path / ".lock", "a", opener=unlinked))
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO):
                    raise
                raise UserError(f"cannot lock {self.path / '.lock'}: {error.strerror}; remove it") from None
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


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
