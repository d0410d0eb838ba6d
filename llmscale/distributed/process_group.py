"""Joining the process group: one process on a laptop, gloo ranks in a test, NCCL ranks on a cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist

from data_pipeline.base.errors import UserError, first_line
from data_pipeline.base.terminal import tell
from llmscale.distributed.exit_codes import USER_MISTAKE
from llmscale.distributed.gpus import gpu_of, shared_gpu
from llmscale.distributed.interface import INTERFACE, use_interface_of
from llmscale.distributed.meeting import (
    DEADLINE,
    Entry,
    Meeting,
    Target,
    admit,
    attend,
    candidate_ports,
    lead,
    listen,
    rendezvous_seconds,
)
from llmscale.distributed.ranks import LAUNCHER, Place, read_place
from llmscale.distributed.watch import Loss, Watch
from llmscale.distributed.wire import run_token

_AGENT_KEY = "rank-0"
"""In the store of torchrun's agent: the port on which rank 0 is met, and the token of this start."""
_CONNECT_FACTOR = 5.0
"""How many times as long as the ranks may take to meet torch may take to connect them; NCCL takes its time for many."""
_WORD_SECONDS = 3.0
"""How long a rank whose collective failed waits for word of who has died."""
_STORE_SECONDS = 30.0
"""How long rank 0, whose store the others make groups by, waits at its end for those that come later."""

_watches: list[Watch] = []
"""Of this process's group, while there is one of several ranks."""


@dataclass(frozen=True)
class World:
    """This process among all: global rank, number of ranks, and its place on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device


def read_world(device: Literal["auto", "cpu", "cuda"]) -> World:
    """The world as the launcher's variables describe it.

    Raises:
        UserError: as `read_place`, or CUDA is asked for and there is none.
    """
    place = read_place()
    local_rank = place.local_rank
    kind = device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda', but torch sees no GPU here; set run.device=cpu or auto")
    return World(
        rank=place.rank,
        size=place.size,
        local_rank=local_rank,
        local_size=place.local_size,
        device=torch.device(kind, gpu_of(local_rank, torch.cuda.device_count()))
        if kind == "cuda"
        else torch.device(kind),
    )


def join(world: World, timeout_seconds: float = 1800, settings: dict[str, Any] | None = None) -> None:
    """Initialise torch.distributed, also for a single process, so that one code path serves all sizes.

    CPU tensors travel by gloo on every machine, CUDA tensors by NCCL. From here to `leave` a rank that dies is noticed.

    Args:
        timeout_seconds: of each collective.
        settings: the flat config of this rank, which must be that of rank 0.

    Raises:
        UserError: on every rank: what a rank said by `refuse`, which ranks did not come, or the first rank with other
            settings than rank 0, the setting and both values. On this rank only: rank 0 cannot be found, or cannot
            listen. On every rank: two of them have taken the same GPU.
    """
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout_seconds)}
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
        options["device_id"] = world.device
    if world.size == 1:
        # A lone process needs no address and no free port.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **options)
        return
    gpu = str(torch.cuda.get_device_properties(world.device).uuid) if world.device.type == "cuda" else ""
    with _ended_by_watcher():
        meeting = _meet(settings=settings, gpu=gpu)
    use_interface_of(meeting.own_address)
    descriptor = meeting.listener.detach() if meeting.listener is not None else None
    store = dist.TCPStore(
        meeting.address,
        meeting.port,
        is_master=descriptor is not None,
        master_listen_fd=descriptor,
        wait_for_workers=False,
        timeout=options["timeout"],
    )
    if descriptor is not None:
        admit(meeting)
    _watches.append(Watch(world.rank, meeting.hosts, meeting.lines))
    group = dist.PrefixStore(meeting.group, store)
    with _connected_in_time(world.rank):
        dist.init_process_group(backend, store=group, rank=world.rank, world_size=world.size, **options)


@contextlib.contextmanager
def _connected_in_time(rank: int) -> Iterator[None]:
    """End a process whose group does not connect, as where ranks that have met listen on a network that the others do
    not reach: torch would wait as long as for a collective."""
    limit = _CONNECT_FACTOR * rendezvous_seconds()

    def end() -> None:
        network = os.environ.get("GLOO_SOCKET_IFNAME", "the one of the host's name")
        tell(
            f"llmscale: rank {rank} on {socket.gethostname()} met the others, but is not connected to all of them after"
            f" {limit:g} s; its gloo listens on interface {network} (GLOO_SOCKET_IFNAME): name one that every node"
            f" reaches by {INTERFACE}"
        )
        os._exit(USER_MISTAKE)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def refuse(problem: UserError) -> NoReturn:
    """Before `join`: tell all ranks that this one cannot start, since they would wait for it, and raise.

    Raises:
        UserError: on every rank, those in `join` included: the problem of the lowest rank that has one.
    """
    try:
        alone = read_place().size == 1
    except UserError:
        alone = True
    if not alone:
        with _ended_by_watcher():
            _meet(str(problem))
    raise problem


@contextlib.contextmanager
def _ended_by_watcher() -> Iterator[None]:
    """Leave Ctrl-C to the thread that watches for signals, which ends a process that waits for others with a sentence:
    which of the two is first would else be chance."""
    try:
        yield
    except KeyboardInterrupt:
        time.sleep(1)
        raise


def _meet(problem: str = "", settings: dict[str, Any] | None = None, gpu: str = "") -> Meeting:
    """The meeting of all ranks, once every rank has come and none has a problem; else UserError on all of them."""
    place, seconds = read_place(), rendezvous_seconds()
    # Under torchrun the port is that of its agent, whose store tells where rank 0 listens.
    agent = _agent_store(place, seconds) if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None
    if place.rank == 0:
        nonce = "" if agent is None else secrets.token_hex(16)
        listener = listen(place, candidate_ports(place) if agent is None else range(1))
        if agent is not None:
            agent.set(_AGENT_KEY, f"{listener.getsockname()[1]} {nonce}")
        return lead(place, listener, run_token(nonce), seconds, _judge, problem, settings, gpu)

    if agent is None:
        known = Target(candidate_ports(place), run_token())
        return attend(place, lambda: known, seconds, problem, settings, gpu)
    return attend(place, lambda: _target(agent, seconds), seconds, problem, settings, gpu)


def _agent_store(place: Place, seconds: float) -> dist.Store:
    """The store of torchrun's agent, which lives on when ranks are started again.

    What an earlier rank 0 has left there is no harm: nothing answers at its port any more, and until the new one has
    replaced it the others ask again. TORCHELASTIC_RESTART_COUNT tells starts apart on one node only: where a rank on
    another node failed, an agent starts its own again under the same number.
    """
    timeout = timedelta(seconds=seconds)
    store = dist.TCPStore(place.address, place.port, is_master=False, timeout=timeout)
    return dist.PrefixStore("llmscale", store)


def _target(agent: dist.Store, seconds: float) -> Target:
    """Where rank 0 listens, as it has said last in the agent's store."""
    try:
        port, nonce = agent.get(_AGENT_KEY).decode().split()
    except RuntimeError:
        raise UserError(f"rank 0 has not come within {seconds:g} s; more time: {DEADLINE}") from None
    return Target(range(int(port), int(port) + 1), run_token(nonce))


def _judge(entries: list[Entry]) -> str:
    """The problem of the first rank that has one, or of two that share a GPU; empty without."""
    for entry in entries:
        problem = entry.problem or _difference(entries[0], entry)
        if problem:
            return f"rank {entry.rank} on {entry.host}: {problem}" if entry.rank and entry.problem else problem
    return shared_gpu((entry.rank, entry.host, entry.gpu) for entry in entries)


def _difference(lead: Entry, other: Entry) -> str:
    """How a rank's settings differ from rank 0's."""
    theirs, own = lead.settings, other.settings
    if theirs is None or own is None or theirs == own:
        return ""
    key = next(key for key in {**theirs, **own} if theirs.get(key) != own.get(key))
    return (
        f"rank {other.rank} was started with {key} = {own.get(key)!r}, but rank 0 with {theirs.get(key)!r}; give all"
        f" ranks the same file and overrides"
    )


class LostRankError(RuntimeError):
    """Another rank has ended, or cannot be reached any more."""

    def __init__(self, loss: Loss | None, detail: str = "") -> None:
        self.loss = loss
        self.told = False
        """Somebody else says it: another rank, or the launcher."""
        super().__init__(
            "lost another rank, which has ended or cannot be reached; the log of the rank that ended first says why"
            f" ({detail})"
            if loss is None
            else str(loss)
        )


@contextlib.contextmanager
def named_losses() -> Iterator[None]:
    """Say in a sentence what a collective's error means.

    Raises:
        LostRankError: a collective failed within the block since another rank is gone, or anything else that a
            RuntimeError tells after one has died.
    """
    try:
        yield
    except LostRankError:
        raise
    except RuntimeError as error:
        # Of NCCL and of the store there are classes; gloo's errors begin with the file that raises them.
        collective = isinstance(error, dist.DistError) or "/gloo/" in str(error)
        loss = _watches[0].loss(_WORD_SECONDS if collective else 0.0) if _watches else None
        if not collective and (loss is None or loss.reason):
            raise
        lost = LostRankError(loss, first_line(error))
        lost.told = loss is not None and (launcher_tells() or loss.rank != 0 != read_place().rank)
        raise lost from error


def launcher_tells() -> bool:
    """Whether `llmscale launch local` has started this rank, which sees how ranks end and says so."""
    return os.environ.get(LAUNCHER) == "local"


def on_stuck(function: Callable[[Loss], int]) -> None:
    """`function` says, and its result is the exit code, where this process hangs after a rank was lost."""
    for watch in _watches:
        watch.on_stuck = function


def watch() -> Watch | None:
    """What listens to the other ranks of this process's group; None for a lone process."""
    return _watches[0] if _watches else None


def leave(reason: str = "") -> None:
    """Tear the process group down, if there is one; to the other ranks this one has then ended well, or for a reason.

    The last line of a rank that fails comes here too, since the others would else wait for it. A rank 0 that has
    ended well outlasts the others: what they still do may need its store.
    """
    while _watches:
        own = _watches.pop()
        if not reason and dist.is_initialized() and dist.get_rank() == 0:
            own.outlast(_STORE_SECONDS)
        own.close(reason)
    if dist.is_initialized():
        dist.destroy_process_group()


def alone() -> bool:
    """Whether this process has nobody to talk to: it has not joined a group, or is the only one in it."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` on every rank, in rank order."""
    if alone():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def gather_to_lead(value: Any) -> list[Any] | None:
    """Every rank's `value` on rank 0, in rank order; None on the others."""
    if alone():
        return [value]
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found)
    return found


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums over all ranks, in double precision."""
    if alone():
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor]


def all_reduce_wrapping(value: int) -> int:
    """Sum over all ranks of an unsigned 64-bit number, modulo 2^64."""
    if alone():
        return value
    tensor = torch.tensor([value - (1 << 64) if value >= 1 << 63 else value], dtype=torch.int64)
    dist.all_reduce(tensor)
    return int(tensor) % (1 << 64)
