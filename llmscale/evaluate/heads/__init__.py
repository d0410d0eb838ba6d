"""What fine-tuned heads say of the items of tasks: one file for each kind of task that a head answers, of its name."""

from __future__ import annotations

import importlib

from data_pipeline.base.modules import module_names
from llmscale.evaluate.heads.asker import HeadAsker
from llmscale.evaluate.placed import Placed
from llmscale.evaluate.tasks import Task

__all__ = ["HeadAsker", "head_asker"]
_KINDS = module_names(__name__, besides=("asker", "tokens"))


def head_asker(placed: Placed, task: Task) -> HeadAsker | None:
    """What asks the model's head about a task; None for kinds that are not answered by a head.

    Raises:
        UserError: the model has no such head, has other labels than the task, or is cut over ranks.
    """
    if task.kind not in _KINDS:
        return None
    asker: type[HeadAsker] = importlib.import_module(f"{__name__}.{task.kind}").Asker
    return asker(placed, task.settings)
