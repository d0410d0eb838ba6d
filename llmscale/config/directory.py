"""Placeholders in `run.directory`, by which the elements of a job array get a directory each."""

import os
import re
from collections.abc import Mapping

from data_pipeline.base.errors import UserError
from llmscale.config.root import RunConfig

_PLACEHOLDER = re.compile(r"\{(\w*)\}")


def resolve_directory(config: RunConfig, environment: Mapping[str, str] | None = None) -> RunConfig:
    """The config with the values of `{job}` and `{array_task}` in `run.directory`, as Slurm's variables give them.

    Args:
        environment: the variables; this process's own when not given.

    Raises:
        UserError: one is not set, as outside Slurm.
    """
    environment = os.environ if environment is None else environment
    values = {
        # All elements of an array have its number in common; by Slurm's other one they look like single jobs.
        "job": environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID"),
        "array_task": environment.get("SLURM_ARRAY_TASK_ID"),
    }
    needs = {"job": "a Slurm job (SLURM_JOB_ID)", "array_task": "an element of a Slurm job array (SLURM_ARRAY_TASK_ID)"}

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        if not found:
            raise UserError(
                f"run.directory is '{config.run.directory}', but {match[0]} has a value only in {needs[match[1]]}; set"
                f" run.directory to a path without it here"
            )
        return found

    directory = _PLACEHOLDER.sub(value, config.run.directory)
    if directory == config.run.directory:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"directory": directory})})
