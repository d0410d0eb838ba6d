"""The kinds of tasks, a file each: what their files say, and what they make of a record.

A file of this folder defines one `TaskSettings` whose field `kind` is its name; nothing else lists them.
"""

from __future__ import annotations

import functools
from typing import get_args

from data_pipeline.base.modules import classes_of
from llmscale.evaluate.tasks.settings import TaskSettings


@functools.cache
def kinds() -> dict[str, type[TaskSettings]]:
    """The settings of each kind, by its name."""
    return {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in classes_of(__name__, TaskSettings)}
