"""The place of this process among the ranks, read once from the variables that launchers set."""

from __future__ import annotations

import os
from dataclasses import dataclass

from data_pipeline.base.errors import UserError

LAUNCHER = "LLMSCALE_LAUNCHER"
"""Variable with `local` in ranks that `llmscale launch local` has started."""
_PLACE = ("RANK", "WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_HINT = "start ranks by `llmscale launch`, or set what docs/guide/cluster.md lists"


@dataclass(frozen=True)
class Place:
    """What a launcher says of one rank."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    """Ranks of this machine."""
    address: str
    """Of the machine of rank 0; empty for a lone process."""
    port: int
    """On which rank 0 is met; 0 for a lone process."""


ALONE = Place(0, 1, 0, 1, "", 0)


def read_place() -> Place:
    """This process's place by RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Without RANK, and with a WORLD_SIZE of 1 or none, it is a lone process, which needs none of the others.

    Raises:
        UserError: names a variable that is missing, no whole number, or not below its number of ranks. On this rank
            only.
    """
    environment = os.environ
    number = {name: _number(name) for name in (*_PLACE, "LOCAL_RANK", "MASTER_PORT")}
    # DeepSpeed's launcher has a name of its own for it.
    local_size = _number("LOCAL_WORLD_SIZE") or _number("LOCAL_SIZE") or 1
    if number["RANK"] is None and number["WORLD_SIZE"] in (None, 1):
        return ALONE
    names = _PLACE if number["WORLD_SIZE"] == 1 else (*_PLACE, *_ADDRESS)
    missing = [name for name in names if not environment.get(name)]
    if missing:
        given = ", ".join(f"{name} is {environment[name]}" for name in names if environment.get(name))
        raise _refused(f"{given}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set")
    rank, size, local_rank = number["RANK"] or 0, number["WORLD_SIZE"] or 1, number["LOCAL_RANK"] or 0
    for name, value, sizes, ranks in (
        ("RANK", rank, "WORLD_SIZE", size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size if "LOCAL_WORLD_SIZE" in environment else None),
    ):
        if ranks is not None and value >= ranks:
            raise _refused(f"{name} is {value}, but {sizes} is {ranks}, and ranks count from 0")
    port = number["MASTER_PORT"] or 0
    if size > 1 and not 0 < port < 65536:
        raise _refused(f"MASTER_PORT is {port}, but must be from 1 to 65535")
    return Place(rank, size, local_rank, local_size, environment.get("MASTER_ADDR", ""), port)


def planned_ranks() -> int | None:
    """WORLD_SIZE, where it is set: how many ranks a check without ranks is for.

    Raises:
        UserError: it is no whole number above 0.
    """
    return _number("WORLD_SIZE")


def shown_rank() -> int:
    """The rank that messages name, whatever else is wrong with the variables; 0 without one.

    Of Slurm's tasks without a rank it is the number on their node: one of each node speaks.
    """
    text = os.environ.get("RANK") or (os.environ.get("SLURM_LOCALID", "0") if "SLURM_STEP_ID" in os.environ else "0")
    return int(text) if text.isdecimal() else 0


def adopt_local_rank(local_rank: int) -> None:
    """Take `--local_rank`, which DeepSpeed's launcher and older ones of torch pass, for LOCAL_RANK.

    Raises:
        UserError: LOCAL_RANK is set to another number.
    """
    known = os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if known != str(local_rank):
        raise _refused(f"--local_rank is {local_rank}, but LOCAL_RANK is {known}; leave one of them out")


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise _refused(f"{name} is '{text}', but must be a whole number")
    if int(text) == 0 and name.endswith("SIZE"):
        raise _refused(f"{name} is 0, but a run has at least one rank")
    return int(text)


def _refused(problem: str) -> UserError:
    error = UserError(f"{problem}; {_HINT}")
    error.everywhere = False
    return error
