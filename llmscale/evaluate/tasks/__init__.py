"""Tasks as files: what is asked of a model, made into items. Nothing here needs torch."""

from llmscale.evaluate.tasks.data import DATA_ROOT
from llmscale.evaluate.tasks.files import Listed, available_tasks
from llmscale.evaluate.tasks.suite import Selection, Suite, load_tasks
from llmscale.evaluate.tasks.task import Task, load_task

__all__ = ["DATA_ROOT", "Listed", "Selection", "Suite", "Task", "available_tasks", "load_task", "load_tasks"]
