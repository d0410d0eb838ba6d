"""The model's side of the objectives: one file each, found by listing this folder; and the loss that heads make."""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from typing import Any

from data_pipeline.base.modules import classes_of
from data_pipeline.objectives import ObjectiveSettings
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Reading, Shape

__all__ = ["ModelSide", "Reading", "Shape", "model_side", "settings_for"]
_TOOLS = ("framed", "loss", "objective", "preference_loss", "reward_loss", "scores")
"""Modules that are none."""


@cache
def _all() -> dict[type[ObjectiveSettings], type[ModelSide[Any]]]:
    return {side.settings: side for side in classes_of(__name__, ModelSide, besides=_TOOLS)}


def model_side(config: ObjectiveSettings) -> ModelSide[Any]:
    """What the objective of these settings says of models."""
    return _all()[type(config)](config)


def settings_for(model: ModelConfig, roles: Container[str] | None = None) -> dict[str, Any]:
    """The objective section by which to go on training a model.

    Args:
        roles: of the tokens that its tokenizer has; None: any.
    """
    known = (side.made_for(model, roles) for side in _all().values())
    return next(settings for settings in known if settings is not None)
