"""A tracker watches a run: it changes no bit of it, and shows each step once."""

import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmscale.config import load_config
from llmscale.train.run_directory import RunDirectory
from llmscale.train.trackers import start_trackers
from tests.tiny_run import write_tiny_run


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder, by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _state() -> list[Any]:
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    draws = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    return [*draws, *settings, dict(os.environ), handlers]


def test_a_step_that_is_trained_again_after_a_kill_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    config = load_config(write_tiny_run(tmp_path), ["logging.trackers=[tensorboard]"])
    run = RunDirectory(tmp_path / "run")
    run.create(config)
    before = _state()
    killed = start_trackers(config, run, 0)
    for step in (1, 2, 3, 4):
        killed[0].log({"loss": float(step), "words": "no number"}, step)
    killed[0].log({"evaluation/loss": 9.0}, 2)
    again = start_trackers(config, run, 2)
    for step in (3, 4, 5):
        again[0].log({"loss": 10.0 + step}, step)
    again[0].finish()
    assert _scalars(run.path / "run") == {
        "loss": [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)],
        "evaluation/loss": [(2, 9.0)],
    }
    assert _state() == before


class _Unruly:
    """A tracker's library that changes what it should not. It keeps rows as MLflow does: none goes."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.started: list[str | None] = []

    def _spoil(self) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.environ["RANK"] = "7"
        os.environ.pop("HOME", None)

    def set_experiment(self, name: str) -> None:
        self._spoil()

    def start_run(self, run_id: str | None) -> Any:
        self.started.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"made-{len(self.started)}"))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._spoil()
        self.rows += [(name, step) for name in metrics]

    def MlflowClient(self) -> Any:
        history = lambda _, key: [SimpleNamespace(step=step) for name, step in self.rows if name == key]  # noqa: E731
        return SimpleNamespace(get_metric_history=history)

    def end_run(self) -> None:
        self._spoil()


def test_whatever_a_trackers_library_changes_is_put_back_and_its_run_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library = _Unruly()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    config = load_config(write_tiny_run(tmp_path), ["logging.trackers=[mlflow]"])
    run = RunDirectory(tmp_path / "run")
    run.create(config)
    before = _state()
    for start in ((0, 1, 2, 3), (1, 2, 3, 4), (0, 1)):
        (tracker,) = start_trackers(config, run, start[0])
        for step in start[1:]:
            tracker.log({"loss": 1.0}, step)
        tracker.finish()
        assert _state() == before
    # The second continues the first one's run and sends what it lacks; from step 0 on, a run begins anew.
    assert library.started == [None, "made-1", None]
    assert [step for _, step in library.rows] == [1, 2, 3, 4, 1]
