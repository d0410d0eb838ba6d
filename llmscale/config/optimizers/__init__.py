"""The optimizers: one file each, with what the rest asks of it before torch is imported.

Tables only. An optimizer's update is the file of the same name in `llmscale.engine.optimizers`. A file with a KIND is
an optimizer, by its name; no other file knows of it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Literal

from data_pipeline.base.modules import module_names
from llmscale.config.optimizers.kind import OptimizerKind

NAMES = module_names(__name__, besides=("kind",))
if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[NAMES]


@cache
def optimizer_kind(name: str) -> OptimizerKind:
    """What the file of an optimizer says of it."""
    return importlib.import_module(f"{__name__}.{name}").KIND  # type: ignore[no-any-return]


def description() -> str:
    """What each optimizer is, for the setting that names one."""
    return " ".join(f"{name}: {optimizer_kind(name).description}." for name in NAMES)
