"""From Slurm's environment variables to the names that torchrun uses and the trainer reads."""

import os
import re
from collections.abc import Mapping, MutableMapping

from data_pipeline.errors import UserError

_FIRST_PORT = 20000
"""Below Linux's ephemeral ports (32768 and up), so that no outgoing connection holds the port by chance."""


def adopt_slurm_environment(environment: MutableMapping[str, str] | None = None) -> bool:
    """Inside a task that `srun` started, set torchrun's variables.

    These are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    Does nothing where RANK is set already (torchrun, accelerate, `llmscale launch local`) and outside `srun`: a batch
    script or an `salloc` shell is not a rank, although Slurm gives it a SLURM_PROCID of 0. The address is the step's
    first node, on which Slurm places rank 0; a MASTER_ADDR or MASTER_PORT that is set already is kept.

    Args:
        environment: the variables to read and complete; this process's own when not given.

    Returns:
        Whether anything was set.

    Raises:
        UserError: a variable is missing or makes no sense. There is no fallback to localhost: it would make every node
            a world of its own.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return False
    node = _number(environment, "SLURM_NODEID")
    tasks_by_node = _repeated(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    if node >= len(tasks_by_node):
        raise UserError(
            f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE '{environment['SLURM_STEP_TASKS_PER_NODE']}' lists"
            f" {len(tasks_by_node)} nodes; start each rank with srun"
        )
    adopted: dict[str, str | int] = {
        "RANK": _number(environment, "SLURM_PROCID"),
        "WORLD_SIZE": _number(environment, "SLURM_STEP_NUM_TASKS"),
        "LOCAL_RANK": _number(environment, "SLURM_LOCALID"),
        "LOCAL_WORLD_SIZE": tasks_by_node[node],
    }
    if "MASTER_ADDR" not in environment:
        adopted["MASTER_ADDR"] = first_host(_text(environment, "SLURM_STEP_NODELIST"))
    if "MASTER_PORT" not in environment:
        # One job has one port, so that jobs that share a node do not meet.
        adopted["MASTER_PORT"] = _FIRST_PORT + _number(environment, "SLURM_JOB_ID") % 10000
    if "OMP_NUM_THREADS" not in environment and "SLURM_CPUS_PER_TASK" in environment:
        adopted["OMP_NUM_THREADS"] = environment["SLURM_CPUS_PER_TASK"]
    environment.update({name: str(value) for name, value in adopted.items()})
    return True


def require_rank_variables(environment: Mapping[str, str] | None = None) -> None:
    """Refuse torchrun's variables, those that are set, where they make no sense.

    Args:
        environment: the variables; this process's own when not given.

    Raises:
        UserError: one is not a whole number, or a rank is not below its number of ranks. On this rank only.
    """
    environment = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    problem = ""
    for name in names:
        if name in environment and not environment[name].isdecimal():
            problem = problem or f"{name} is '{environment[name]}', but must be a whole number"
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if not problem and name in environment and size in environment:
            rank, ranks = int(environment[name]), int(environment[size])
            if rank >= ranks:
                problem = f"{name} is {rank}, but {size} is {ranks}, and ranks count from 0"
    if problem:
        error = UserError(f"{problem}; start ranks by `llmscale launch`")
        error.everywhere = False
        raise error


def first_host(nodelist: str) -> str:
    """The first host of a Slurm host list: `rack[2-3]n[08-15,20],login1` gives `rack2n08`.

    Equals the first line of `scontrol show hostnames`, which containers on a cluster often lack.

    Raises:
        UserError: the list is empty or its brackets are broken.
    """
    expression = re.match(r"((?:[\w.-]|\[\d[\d,-]*\])+)(?:,|$)", nodelist)
    if not expression:
        raise UserError(f"cannot read a first host from the Slurm node list '{nodelist}'; set MASTER_ADDR yourself")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", expression[1])


def _repeated(counts: str) -> list[int]:
    """Slurm's counts by node, `2(x3),1`, as a list: [2, 2, 2, 1]."""
    numbers: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is '{counts}', but must look like '2(x3),1'")
        numbers += [int(match[1])] * int(match[2] or 1)
    return numbers


def _text(environment: MutableMapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise UserError(f"this looks like a Slurm task, but {name} is not set; start each rank with srun")
    return value


def _number(environment: MutableMapping[str, str], name: str) -> int:
    value = _text(environment, name)
    if not value.isdigit():
        raise UserError(f"{name} is '{value}', but must be a whole number; start each rank with srun")
    return int(value)
