"""Settings of the objectives: what becomes of a sample before the model sees it, and what it must predict.

Each objective has a file in this folder, with its settings and what it makes of documents; none is named here.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from data_pipeline.objectives.objective import ObjectiveSettings

_TOOLS = ("answers", "by_document", "config", "framed", "labels", "objective", "packing", "rows", "windows")
"""Modules that objectives are written with."""


def _all() -> tuple[type[ObjectiveSettings], ...]:
    """The settings of all objectives: those that a file of this folder defines."""
    folder = Path(__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name not in _TOOLS)
    modules = [importlib.import_module(f"data_pipeline.objectives.{name}") for name in names]
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ObjectiveSettings) and value.__module__ == module.__name__
    )


OBJECTIVES = {settings.model_fields["name"].default: settings for settings in _all()}
"""The settings of each objective, by name."""
if TYPE_CHECKING:
    ObjectiveConfig = ObjectiveSettings
else:
    ObjectiveConfig = Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="name")]  # noqa: UP007
