"""What can be known of a job before it waits in the queue: whether its GPUs have the memory, its signal the time."""

import contextlib
import re
from collections.abc import Mapping

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.plan.hardware import TABLE, Hardware
from llmscale.plan.search import Planner
from llmscale.plan.workload import workload_of
from llmscale.report.goodput import longest_save

_GPU_OPTIONS = ("gpus-per-node", "gpus", "gres", "constraint")
_SAVE_FACTOR = 2.0
"""The lead of the signal should be so many times the longest save, since a step comes before it."""


def warnings(
    config: RunConfig, ranks: int | None, given: Mapping[str, str], environment: Mapping[str, str], lead: int
) -> list[str]:
    """What is likely to go wrong, a sentence each.

    Args:
        ranks: None where nobody knows yet.
        given: sbatch's options.
        environment: sbatch's, for its variables.
        lead: seconds between the signal and the time limit.
    """
    gpu = _gpu(given, environment)
    said = [] if gpu is None or ranks is None or config.run.device == "cpu" else _memory(config, ranks, gpu)
    save = 0.0
    with contextlib.suppress(OSError):  # which the run itself will complain of
        save = longest_save(config.run.directory)
    if save * _SAVE_FACTOR > lead:
        said.append(
            f"a checkpoint of {config.run.directory} has taken {save:.0f} s, but the ranks are told to save {lead} s"
            f" before the time limit; give `-- --signal=USR1@{round(save * _SAVE_FACTOR) + 60}`"
        )
    return said


def _gpu(given: Mapping[str, str], environment: Mapping[str, str]) -> Hardware | None:
    """The kind of GPU that the options ask for by name, where the table has it."""
    for option in _GPU_OPTIONS:
        text = given.get(option, environment.get(f"SBATCH_{option.upper().replace('-', '_')}", ""))
        for word in re.split(r"[:,/&|_-]", text.lower()):
            if word in TABLE:
                return TABLE[word]
    return None


def _memory(config: RunConfig, ranks: int, gpu: Hardware) -> list[str]:
    try:
        planner = Planner(config, workload_of(config), gpu, gpu.memory)
    except UserError:  # the vocabulary is not known yet
        return []
    needed = planner.own(ranks).memory
    if planner.fits(needed):
        return []
    return [
        f"the forecast for {ranks} ranks is {needed.total / 2**30:.0f} GiB a GPU, but a {gpu.name} has"
        f" {gpu.memory / 2**30:.0f} GiB; see `llmscale plan --gpus {ranks}` for layouts that fit"
    ]
