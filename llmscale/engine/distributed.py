"""Joining the process group: one process on a laptop, gloo ranks in a test, NCCL ranks on a cluster."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from data_pipeline.errors import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher sets."""


@dataclass(frozen=True)
class World:
    """This process among all: global rank, number of ranks, and its place on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device


def read_world(device: Literal["auto", "cpu", "cuda"]) -> World:
    """The world as the launcher's variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) describe it.

    Raises:
        UserError: a launcher set only some of the variables, or CUDA is asked for and there is none.
    """
    present = [name for name in _VARIABLES if name in os.environ]
    if "RANK" in present and len(present) < len(_VARIABLES):
        missing = ", ".join(name for name in _VARIABLES if name not in present)
        raise UserError(f"RANK is {os.environ['RANK']} but {missing} is not set; start ranks by `llmscale launch`")
    in_group = "RANK" in present
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if in_group else 0
    kind = device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda', but torch sees no GPU here; set run.device=cpu or auto")
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this machine runs local rank {local_rank}, but has {torch.cuda.device_count()} GPU(s);"
            f" start at most one rank per GPU"
        )
    return World(
        rank=int(os.environ["RANK"]) if in_group else 0,
        size=int(os.environ["WORLD_SIZE"]) if in_group else 1,
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if in_group else 1,
        device=torch.device("cuda", local_rank) if kind == "cuda" else torch.device("cpu"),
    )


def join(world: World, timeout_minutes: float = 30, settings: dict[str, Any] | None = None) -> None:
    """Initialise torch.distributed, also for a single process, so that one code path serves all sizes.

    CPU tensors travel by gloo on every machine, CUDA tensors by NCCL.

    Args:
        settings: the flat config of this rank, which must be that of rank 0.

    Raises:
        UserError: on every rank: what a rank said by `refuse`, or the first rank with other settings than rank 0, the
            setting and both values.
    """
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)}
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
        options["device_id"] = world.device
    if world.size == 1:
        # A lone process needs no address and no free port.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **options)
    else:
        store = dist.PrefixStore("group", _meet("", options["timeout"], settings))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, **options)


def refuse(problem: UserError, timeout_minutes: float = 30) -> NoReturn:
    """Before `join`: tell all ranks that this one cannot start, since they would wait for it, and raise.

    Raises:
        UserError: on every rank, those in `join` included: the problem of the lowest rank that has one.
    """
    if all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1":
        _meet(str(problem), timedelta(minutes=timeout_minutes))
    raise problem


def _meet(problem: str, timeout: timedelta, settings: dict[str, Any] | None = None) -> dist.Store:
    """The ranks' common store, once every rank has come and none has a problem; else UserError on all of them."""
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    if rank and problem:
        problem = f"rank {rank}: {problem}"
    if not problem and settings is not None:
        problem = _difference(store, rank, settings)
    elif rank == 0:
        store.set("digest", "")
    store.set(f"problem/{rank}", problem)
    if rank == 0:
        problems = (store.get(f"problem/{other}").decode() for other in range(size))
        store.set("verdict", next(filter(None, list(problems)), ""))
    verdict = store.get("verdict").decode()
    if verdict:
        # Rank 0 holds the store, so it leaves last.
        store.set(f"heard/{rank}", "")
        if rank == 0:
            store.wait([f"heard/{other}" for other in range(size)])
        raise UserError(verdict)
    return store


def _difference(store: dist.Store, rank: int, settings: dict[str, Any]) -> str:
    """How this rank's settings differ from rank 0's, which are read only where their digests differ."""
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if rank == 0:
        store.set("settings", text)
        store.set("digest", digest)
        return ""
    lead = store.get("digest").decode()
    if lead in ("", digest):
        return ""
    theirs, mine = json.loads(store.get("settings")), json.loads(text)
    key = next(key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key))
    return (
        f"rank {rank} was started with {key} = {mine.get(key)!r}, but rank 0 with {theirs.get(key)!r}; give all ranks"
        f" the same file and overrides"
    )


class LostRankError(RuntimeError):
    """Another rank has ended, or cannot be reached any more."""


@contextlib.contextmanager
def named_losses() -> Iterator[None]:
    """Say in a sentence what a collective's error means.

    Raises:
        LostRankError: a collective failed within the block since another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        # Of NCCL and of the store there are classes; gloo's errors begin with the file that raises them.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise LostRankError(
            f"lost another rank, which has ended or cannot be reached; the log of the rank that ended first says why"
            f" ({first})"
        ) from error


def leave() -> None:
    """Tear the process group down, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` on every rank, in rank order."""
    if dist.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def gather_to_lead(value: Any) -> list[Any] | None:
    """Every rank's `value` on rank 0, in rank order; None on the others."""
    if dist.get_world_size() == 1:
        return [value]
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found)
    return found


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums over all ranks, in double precision."""
    if dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor]


def all_reduce_wrapping(value: int) -> int:
    """Sum over all ranks of an unsigned 64-bit number, modulo 2^64."""
    if dist.get_world_size() == 1:
        return value
    tensor = torch.tensor([value - (1 << 64) if value >= 1 << 63 else value], dtype=torch.int64)
    dist.all_reduce(tensor)
    return int(tensor) % (1 << 64)


def barrier() -> None:
    """Wait for every rank."""
    if dist.get_world_size() > 1:
        all_reduce_sum([0.0])
