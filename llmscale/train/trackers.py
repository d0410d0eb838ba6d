"""Experiment trackers (TensorBoard, W&B, MLflow) through accelerate's, which all have one interface."""

from __future__ import annotations

import importlib.util
from typing import Any

from data_pipeline.errors import UserError
from llmscale.config import RunConfig
from llmscale.train.run_directory import RunDirectory

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker:
    """One accelerate tracker: takes figures by step."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Record figures of a step."""
        self._tracker.log(figures, step=step)

    def finish(self) -> None:
        """Write out what is pending."""
        self._tracker.finish()


def require_trackers(config: RunConfig) -> None:
    """Refuse trackers that are not installed, before anything else is done.

    Raises:
        UserError: names the tracker and how to install it.
    """
    for name in config.logging.trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(f"logging.trackers has '{name}', which is not installed; `pip install {_PACKAGES[name]}`")


def start_trackers(config: RunConfig, run: RunDirectory) -> list[Tracker]:
    """The trackers that `logging.trackers` names, writing below the run directory where they write files."""
    if not config.logging.trackers:
        return []
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    # accelerate's trackers ask its state who the main process is; it adopts our process group.
    PartialState(cpu=config.run.device == "cpu")
    started = []
    for name in config.logging.trackers:
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(run.path)} if kind.requires_logging_directory else {}
        tracker = kind(run.path.name, **folder)
        if hasattr(tracker, "start"):
            tracker.start()
        started.append(Tracker(tracker))
    return started
