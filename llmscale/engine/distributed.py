"""Joining the process group: one process on a laptop, gloo ranks in a test, NCCL ranks on a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from data_pipeline.errors import UserError
from llmscale.engine.shims import restart_numbers

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


def join(world: World, timeout_minutes: float = 30) -> None:
    """Initialise torch.distributed, also for a single process, so that one code path serves all sizes.

    CPU tensors travel by gloo on every machine, CUDA tensors by NCCL.
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
        store = dist.PrefixStore("group", _meet(None, options["timeout"]))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, **options)


def refuse(problem: UserError, timeout_minutes: float = 30) -> NoReturn:
    """Before `join`: tell all ranks that this one cannot start, since they would wait for it, and raise.

    Raises:
        UserError: on every rank, those in `join` included: the problem of the lowest rank that has one.
    """
    if all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1":
        _meet(str(problem), timedelta(minutes=timeout_minutes))
    raise problem


def _meet(problem: str | None, timeout: timedelta) -> dist.Store:
    """The ranks' common store, once every rank has come and none has a problem; else UserError on all of them."""
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set(f"problem/{rank}", problem or "")
    if rank == 0:
        problems = [store.get(f"problem/{other}").decode() for other in range(size)]
        first = next((other for other in range(size) if problems[other]), 0)
        store.set("verdict", (f"rank {first}: " if first else "") + problems[first])
    verdict = store.get("verdict").decode()
    if verdict:
        # Rank 0 holds the store, so it leaves last.
        store.set(f"heard/{rank}", "")
        if rank == 0:
            store.wait([f"heard/{other}" for other in range(size)])
        raise UserError(verdict)
    return store


def leave() -> None:
    """Tear the process group down, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    restart_numbers()


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
