"""Settings of the objectives: what becomes of a sample before the model sees it, and what it must predict.

Each objective has a file in this folder, with its settings and what it makes of documents; none is named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from data_pipeline.base.modules import classes_of
from data_pipeline.objectives.objective import ObjectiveSettings

_TOOLS = ("answers", "by_document", "config", "framed", "labels", "objective", "packing", "rows", "windows")
"""Modules that objectives are written with."""


def _all() -> tuple[type[ObjectiveSettings], ...]:
    """The settings of all objectives: those that a file of this folder defines."""
    return classes_of("data_pipeline.objectives", ObjectiveSettings, besides=_TOOLS)


OBJECTIVES = {settings.model_fields["name"].default: settings for settings in _all()}
"""The settings of each objective, by name."""
if TYPE_CHECKING:
    ObjectiveConfig = ObjectiveSettings
else:
    ObjectiveConfig = Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="name")]  # noqa: UP007
