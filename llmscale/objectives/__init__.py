"""The model's side of the objectives: one file each, found by listing this folder; and the loss that heads make."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Container
from functools import cache
from typing import Any

from data_pipeline.objectives import ObjectiveSettings
from llmscale.config import ModelConfig
from llmscale.objectives.objective import ModelSide, Reading, Shape

__all__ = ["ModelSide", "Reading", "Shape", "model_side", "settings_for"]
_TOOLS = ("framed", "loss", "objective", "preference_loss", "reward_loss", "scores")
"""Modules that are none."""


@cache
def _all() -> dict[type[ObjectiveSettings], type[ModelSide[Any]]]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _TOOLS)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {
        value.settings: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ModelSide) and value.__module__ == module.__name__
    }


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
