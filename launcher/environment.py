"""From Slurm's environment variables to the names that torchrun uses and the trainer reads."""

import os
import re
import socket
from collections.abc import Mapping, MutableMapping

from data_pipeline.base.errors import UserError

_FIRST_PORT = 20000
"""Below Linux's ephemeral ports (32768 and up), so that no outgoing connection holds the port by chance."""

_PORTS = 16
"""How many ports a step may try."""

_LOOPBACK = re.compile(r"(localhost$|127\.|::1$)")


RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each rank, and the trainer reads."""

STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""Set in the tasks of `srun` only. A launcher that starts ranks of its own takes it out of their environment."""

_OTHER_STEP = "4294967291"
"""Numbers of so many digits are not those of steps of `srun`: this is a batch script's."""

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Set by torchrun (and accelerate), and by DeepSpeed's launcher, for the ranks that they start."""


def adopt_slurm_environment(environment: MutableMapping[str, str] | None = None) -> bool:
    """Inside a task that `srun` started, set torchrun's variables.

    These are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and what the ranks meet by:
    LLMSCALE_PORTS and LLMSCALE_TOKEN.
    Does nothing outside `srun`: a batch script or an `salloc` shell is not a rank, although Slurm gives it a
    SLURM_PROCID of 0. Does nothing either where a launcher inside the task has set them: torchrun, accelerate or
    deepspeed say so in the environment, and in a step of one task, such as an interactive shell, ranks of a larger
    world can only be somebody's own. The address is the step's first node, on which Slurm places rank 0; a MASTER_ADDR
    or MASTER_PORT that is set already is kept.

    Args:
        environment: the variables to read and complete; this process's own when not given.

    Returns:
        Whether anything was set.

    Raises:
        UserError: a variable is missing, makes no sense or contradicts Slurm's. There is no fallback to localhost: it
            would make every node a world of its own, as a RANK left over from another launch would.
    """
    environment = os.environ if environment is None else environment
    if "RANK" not in environment and len(environment.get("SLURM_STEP_ID", _OTHER_STEP)) < len(_OTHER_STEP):
        _text(environment, STEP_TASKS)  # without it each task would train alone
    if STEP_TASKS not in environment or ("RANK" in environment and any(name in environment for name in _LAUNCHERS)):
        return False
    tasks = _number(environment, STEP_TASKS)
    if tasks == 1 and "RANK" in environment and environment.get("WORLD_SIZE") != "1":
        return False
    adopted = _place(environment, tasks)
    _require_slurms_own(environment, adopted)
    if "OMP_NUM_THREADS" not in environment and "SLURM_CPUS_PER_TASK" in environment:
        adopted["OMP_NUM_THREADS"] = environment["SLURM_CPUS_PER_TASK"]
    environment.update(adopted)
    return True


def _place(environment: Mapping[str, str], tasks: int) -> dict[str, str]:
    """torchrun's variables of a task of `srun`."""
    node = _number(environment, "SLURM_NODEID")
    tasks_by_node = _repeated(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    if node >= len(tasks_by_node):
        raise UserError(
            f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE '{environment['SLURM_STEP_TASKS_PER_NODE']}' lists"
            f" {len(tasks_by_node)} nodes; start each rank with srun"
        )
    address = environment.get("MASTER_ADDR")
    return {
        "RANK": str(_number(environment, "SLURM_PROCID")),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(tasks_by_node[node]),
        "MASTER_ADDR": first_host(_text(environment, "SLURM_STEP_NODELIST")) if address is None else address,
        **_meeting_point(environment),
    }


def _meeting_point(environment: Mapping[str, str]) -> dict[str, str]:
    """The port on which the ranks of this step meet, and the token by which they know each other. Steps that share a
    node have different ones; where another program has the port, the ranks find each other on one of the next."""
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    point = {"LLMSCALE_TOKEN": f"{environment.get('LLMSCALE_TOKEN', '')} {job}.{step}".strip()}
    if "MASTER_PORT" in environment:
        return point | {"MASTER_PORT": environment["MASTER_PORT"]}
    return point | {"MASTER_PORT": str(_FIRST_PORT + (job + _PORTS * step) % 10000), "LLMSCALE_PORTS": str(_PORTS)}


def _require_slurms_own(environment: MutableMapping[str, str], place: Mapping[str, str]) -> None:
    """Refuse what a shell has kept of another launch: with it, some ranks would train alone or wait for ever."""
    problem = ""
    for name in ("RANK", "WORLD_SIZE"):
        if environment.get(name, place[name]) != place[name]:
            problem = problem or f"{name} is '{environment[name]}', but Slurm's own is {place[name]}"
    nodes = len(_repeated(environment["SLURM_STEP_TASKS_PER_NODE"]))
    if not problem and nodes > 1 and _LOOPBACK.match(place["MASTER_ADDR"]):
        problem = (
            f"MASTER_ADDR is '{place['MASTER_ADDR']}', which is another machine on each of the {nodes} nodes of this"
            " Slurm step"
        )
    if problem:
        environment["RANK"] = place["RANK"]  # so that rank 0 alone says it
        raise UserError(f"{problem}; run `unset {' '.join(RANK_VARIABLES)}` before sbatch or srun")


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


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        node = environment.get("SLURMD_NODENAME") or socket.gethostname()
        raise UserError(
            f"this looks like a Slurm task, on {node}, but {name} is not set; start each rank with srun, and let it"
            " have all that srun sets"
        )
    return value


def _number(environment: Mapping[str, str], name: str) -> int:
    value = _text(environment, name)
    if not value.isdigit():
        raise UserError(f"{name} is '{value}', but must be a whole number; start each rank with srun")
    return int(value)
