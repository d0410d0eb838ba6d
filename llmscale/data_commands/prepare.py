"""What `llmscale data prepare` does and prints."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from data_pipeline.prepare.prepare import Watcher, prepare
from data_pipeline.prepare.workers import Report
from llmscale.config import load_config

LINE_SECONDS = 30.0
"""Where stderr is no terminal, a line so often."""


def prepare_data(
    path: Path,
    out: Path,
    overrides: tuple[str, ...],
    *,
    processes: int | None,
    rank: int,
    world: int,
    merge_only: bool,
) -> str:
    """Tokenise the sources of a config into `out`, with a progress bar on stderr; returns a sentence on what is done.

    Raises:
        UserError: see `data_pipeline.prepare.prepare.prepare`.
    """
    config = load_config(path, overrides)
    roles = config.objective.roles(config.data.sequence_length)
    with _Shown() as shown:
        outcome = prepare(
            config.data,
            out,
            processes=processes or len(os.sched_getaffinity(0)),
            rank=rank,
            world=world,
            merge_only=merge_only,
            watcher=shown,
            roles=roles,
            begins_from=config.train.init_from,
        )
        for warning in outcome.warnings:
            shown.note(warning)
    return outcome.message


class _Shown(Watcher):
    """A bar with rate and time left on stderr, or a line every 30 s where that is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def note(self, message: str) -> None:
        self._stop()
        self._console.print(message, highlight=False, soft_wrap=True)

    def stage(self, name: str, size: int) -> Report:
        self._stop()
        rate = _Rate(size)
        if not self._console.is_terminal:
            return self._lines(name, size, rate)
        columns = (
            TextColumn(name),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        # No thread of its own: the workers are forked after this, and a fork copies the locks that a thread holds.
        bar = self._bar = Progress(*columns, console=self._console, auto_refresh=False)
        task: TaskID = bar.add_task(name, total=size, rate="")
        bar.start()

        def report(done: int, tokens: int) -> None:
            rate.add(done, tokens)
            bar.update(task, advance=done, rate=rate.text)
            bar.refresh()

        return report

    def _lines(self, name: str, size: int, rate: _Rate) -> Report:
        said = time.monotonic()

        def report(done: int, tokens: int) -> None:
            nonlocal said
            rate.add(done, tokens)
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                share = f"{name} {rate.done / 1e6:,.1f} of {size / 1e6:,.1f} MB"
                self._console.print(f"{share}, {rate.text}, {rate.left}", highlight=False, soft_wrap=True)

        return report

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rate:
    """Bytes and tokens per second since the first report, which says what was done before."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._before: int | None = None
        self._start = 0.0
        self._tokens = 0
        self.done = 0
        """Bytes, those of earlier calls included."""

    def add(self, done: int, tokens: int) -> None:
        """Count what was done."""
        self.done += done
        self._tokens += tokens
        if self._before is None:
            self._before, self._start = self.done, time.monotonic()

    @property
    def text(self) -> str:
        """Rates since the start."""
        tokens = f", {self._tokens / self._seconds:,.0f} tokens/s" if self._tokens else ""
        return f"{self._bytes_per_second / 1e6:,.1f} MB/s{tokens}"

    @property
    def left(self) -> str:
        """Time left at this rate."""
        seconds = (self._size - self.done) / max(self._bytes_per_second, 1.0)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d} left"

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-3)

    @property
    def _bytes_per_second(self) -> float:
        return (self.done - (self._before or 0)) / self._seconds
