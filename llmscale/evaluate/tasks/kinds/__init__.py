"""The kinds of tasks, a file each: what their files say, and what they make of a record.

A file of this folder defines one `TaskSettings` whose field `kind` is its name; nothing else lists them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import get_args

from llmscale.evaluate.tasks.settings import TaskSettings


@functools.cache
def kinds() -> dict[str, type[TaskSettings]]:
    """The settings of each kind, by its name."""
    found: dict[str, type[TaskSettings]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, TaskSettings) and "kind" in value.model_fields:
                found[get_args(value.model_fields["kind"].annotation)[0]] = value
    return found
