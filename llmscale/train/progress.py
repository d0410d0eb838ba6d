"""What a person sees of a running training, on stderr of rank 0: a bar on a terminal, plain lines elsewhere, and in the
log of a Slurm job, which may hold several starts on several nodes, lines with their time and node."""

from __future__ import annotations

import os
import socket
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from data_pipeline.base.terminal import visible
from llmscale.train.state import StepResult


class Progress:
    """Loss, tokens/s and time left. Use as a context manager; a rank other than 0 shows nothing."""

    def __init__(self, steps: int, done: int, interval: int, shown: bool) -> None:
        self._steps = steps
        self._done = done
        self._interval = interval
        self._shown = shown
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._window: list[tuple[float, int]] = []

    def __enter__(self) -> Progress:
        self._window = [(time.perf_counter(), 0)]
        if self._shown and self._console.is_terminal:
            columns = (
                TextColumn("[bold]step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(*columns, console=self._console)
            self._task = self._bar.add_task("train", total=self._steps, completed=self._done, status="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, result: StepResult) -> None:
        """Show one finished step."""
        if not self._shown:
            return
        tokens = self._window[-1][1] + result.tokens
        self._window = [*self._window[-49:], (time.perf_counter(), tokens)]
        (then, before), (now, after) = self._window[0], self._window[-1]
        rate = (after - before) / max(now - then, 1e-9)
        status = f"loss {result.loss:.4f}  {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=result.step, status=status)
        elif result.step % self._interval == 0 or result.step in (self._done + 1, self._steps):
            seconds = (now - then) / max(1, len(self._window) - 1) * (self._steps - result.step)
            self.say(f"step {result.step}/{self._steps}  {status}  lr {result.lr:.2e}  {_duration(seconds)} left")

    def evaluated(self, step: int, figures: dict[str, Any]) -> None:
        """Show an evaluation."""
        shown = {"perplexity": "perplexity {:.2f}", "bits_per_byte": "{:.4f} bits per byte"}
        hidden = ("tokens", "bytes", "samples", "documents")
        parts = [
            shown.get(name, f"{name.replace('_', ' ')} {{:.4f}}").format(value)
            for name, value in figures.items()
            if name not in hidden
        ]
        self.say(f"step {step}: held-out {', '.join(parts)}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.console.print(visible(text), highlight=False, markup=False)
        else:
            print(f"{_stamp()}{visible(text)}", file=sys.stderr, flush=True)


def _stamp() -> str:
    """Local time and node, in front of a line of a Slurm job's log."""
    if "SLURM_PROCID" not in os.environ:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}  "


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
