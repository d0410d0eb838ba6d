"""A window of steps through torch.profiler."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llmscale.train.callbacks.base import Callback
from llmscale.train.state import StepResult, TrainState

ROWS = 40
"""Operations in the table."""


class Profiler(Callback):
    """Records steps `start` to `start + steps - 1` (counted from 1) on rank 0.

    `profile/steps-N-M.json.gz` is a trace for chrome://tracing or https://ui.perfetto.dev, `profile/steps-N-M.txt` a
    table of the operations that took longest.
    """

    def __init__(self, folder: Path, start: int, steps: int, *, active: bool) -> None:
        """`active`: whether this rank records."""
        self._folder, self._active = folder, active
        self._first, self._last = start, start + steps - 1
        self._profile: profile | None = None

    def on_start(self, state: TrainState) -> None:
        self._begin_after(state, state.step)

    def on_step(self, state: TrainState, result: StepResult) -> None:
        if self._profile is not None and result.step == self._last:
            self._end(result.step)
        self._begin_after(state, result.step)

    def on_end(self, state: TrainState) -> None:
        if self._profile is not None:
            self._end(state.step)

    def _begin_after(self, state: TrainState, step: int) -> None:
        if self._active and self._profile is None and step + 1 == self._first and not state.finished:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.__enter__()

    def _end(self, step: int) -> None:
        assert self._profile is not None
        found, self._profile = self._profile, None
        found.__exit__(None, None, None)
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{self._first}-{step}"
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with contextlib.suppress(OSError):  # a picture less, not a run
            found.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
            (self._folder / f"{name}.txt").write_text(found.key_averages().table(sort_by=key, row_limit=ROWS))
