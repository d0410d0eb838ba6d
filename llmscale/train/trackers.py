"""Experiment trackers (TensorBoard, W&B, MLflow), which see a run and change no bit of it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from data_pipeline.base.durable import parse_json, read_file, write_json
from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.train.run_directory import RunDirectory

_OWN_VARIABLES = ("WANDB_", "MLFLOW_", "TENSORBOARD_")
"""Environment variables that a tracker may set, since nothing else reads them."""


class _Backend(Protocol):
    """One tracker's library."""

    id: str
    """By which a later start finds the tracker's run again; empty where it needs none."""

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    """Event files below the run directory. Rows of steps that are trained again replace those of before."""

    def __init__(self, run: RunDirectory, step: int, earlier: str | None) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run.path / run.path.name), purge_step=step + 1)
        self.id = ""

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of W&B, which a later start continues; W&B itself ignores steps that it has."""

    def __init__(self, run: RunDirectory, step: int, earlier: str | None) -> None:
        self._run = importlib.import_module("wandb").init(project=run.path.name, id=earlier, resume="allow")
        self.id = str(self._run.id)

    def log(self, figures: dict[str, float], step: int) -> None:
        self._run.log(figures, step=step)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, which a later start continues. It cannot drop rows, and a step trained again gives the same
    figures, so that those it has already are not sent again."""

    def __init__(self, run: RunDirectory, step: int, earlier: str | None) -> None:
        self._mlflow = importlib.import_module("mlflow")
        if earlier is None:
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", run.path.name))
        self.id = str(self._mlflow.start_run(run_id=earlier).info.run_id)
        self._client = self._mlflow.MlflowClient() if earlier is not None else None
        self._last: dict[str, int] = {}

    def log(self, figures: dict[str, float], step: int) -> None:
        fresh = {name: value for name, value in figures.items() if step > self._had(name)}
        if fresh:
            self._mlflow.log_metrics(fresh, step=step)

    def _had(self, name: str) -> int:
        """The last step of a figure that earlier starts have sent; -1 where there is none."""
        if self._client is None:
            return -1
        if name not in self._last:
            self._last[name] = max((row.step for row in self._client.get_metric_history(self.id, name)), default=-1)
        return self._last[name]

    def finish(self) -> None:
        self._mlflow.end_run()


_BACKENDS: dict[str, Callable[[RunDirectory, int, str | None], _Backend]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


class Tracker:
    """One tracker: takes figures by step."""

    def __init__(self, backend: _Backend) -> None:
        self._backend = backend

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Record the numbers among the figures of a step."""
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        with _unchanged():
            self._backend.log(numbers, step)

    def finish(self) -> None:
        """Write out what is pending."""
        with _unchanged():
            self._backend.finish()


def require_trackers(config: RunConfig) -> None:
    """Refuse trackers that are not installed, before anything else is done.

    Raises:
        UserError: names the tracker and how to install it.
    """
    for name in config.logging.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"logging.trackers has '{name}', which is not installed; `pip install {name}`")


def start_trackers(config: RunConfig, run: RunDirectory, step: int) -> list[Tracker]:
    """The trackers that `logging.trackers` names, writing below the run directory where they write files.

    Args:
        step: the step that this start continues from. What was recorded of later ones is trained again, and shown once.
    """
    ids = _read_ids(run) if step else {}
    started = []
    for name in dict.fromkeys(config.logging.trackers):
        with _unchanged():
            backend = _BACKENDS[name](run, step, ids.get(name))
        started.append(Tracker(backend))
        if backend.id:
            ids[name] = backend.id
            write_json(run.trackers_file, ids)
    return started


def _read_ids(run: RunDirectory) -> dict[str, str]:
    """The names by which trackers know the run; empty where no start has recorded any, or the file is damaged."""
    try:
        found = parse_json(read_file(run.trackers_file))
    except (OSError, ValueError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """After the block, what the bits of a run or its end depend on is as before, whatever a library did to it."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    precision, variables = torch.get_float32_matmul_precision(), dict(os.environ)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if main else {}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for name in {*os.environ, *variables} if dict(os.environ) != variables else ():
            if not name.startswith(_OWN_VARIABLES):
                _set_variable(name, variables.get(name))


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
