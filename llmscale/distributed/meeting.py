"""Where the ranks of a run meet before torch connects them: rank 0 listens, and the others come to it.

Each says who and where it is, what is wrong with it, and its settings. Whoever does not come within a minute is named.
Torch's own store has neither a deadline of that kind nor a password, and lists all its keys to whoever connects.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipeline.base.errors import UserError
from llmscale.distributed.interface import listening_address
from llmscale.distributed.ranks import Place
from llmscale.distributed.wire import Line, StrangerError, is_loopback, seconds_of

DEADLINE = "LLMSCALE_RENDEZVOUS_SECONDS"
"""Variable: how long ranks wait for each other at the start."""
DEFAULT_SECONDS = 60.0
PORTS = "LLMSCALE_PORTS"
"""Variable: how many ports from MASTER_PORT on may be tried, where a launcher and not a person has chosen it."""

_ANSWER_SECONDS = 5.0
"""How long whoever listens on a port has to say that it is rank 0 of this run, and who connects to say who it is."""
_PAUSES = (0.05, 1.0)
"""Seconds between two rounds over the ports: at first, and at most."""


@dataclass(frozen=True)
class Entry:
    """One rank, as it says itself."""

    rank: int
    host: str
    pid: int
    problem: str
    settings: Mapping[str, Any] | None
    gpu: str
    """Identifier of the GPU that it has taken; empty on a CPU."""


class Target(NamedTuple):
    """Where rank 0 may be found, and how to know it."""

    ports: range
    token: bytes


@dataclass
class Meeting:
    """What comes of it on one rank."""

    hosts: list[str]
    """Host of each rank."""
    group: str
    """A secret name for the keys of this group of processes."""
    address: str
    """By which this rank reaches rank 0, or rank 0 itself."""
    own_address: str
    """Of this rank, in the network in which it meets the others."""
    port: int
    listener: socket.socket | None
    """On rank 0: to be taken over by torch's store."""
    lines: dict[int, Line]
    """To every rank from rank 0; to rank 0 from the others."""


def rendezvous_seconds() -> float:
    """How long ranks wait for each other, by LLMSCALE_RENDEZVOUS_SECONDS."""
    return seconds_of(DEADLINE, DEFAULT_SECONDS)


def candidate_ports(place: Place) -> range:
    """The ports on which rank 0 may listen, the wanted one first."""
    tries = os.environ.get(PORTS, "1")
    count = int(tries) if tries.isdecimal() and 0 < int(tries) < 1000 else 1
    return range(place.port, min(place.port + count, 65536))


def listen(place: Place, ports: range) -> socket.socket:
    """The socket of rank 0, on the first of `ports` that is free; port 0 takes any.

    Raises:
        UserError: all of them are in use, or this machine has not the address.
    """
    address = listening_address(place.address)
    problem = ""
    for port in ports:
        try:
            if address:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                return socket.create_server((address, port), family=family, backlog=max(128, place.size))
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=max(128, place.size)
                )
            return socket.create_server(("", port), backlog=max(128, place.size))
        except OSError as error:
            problem = os.strerror(error.errno or 0)
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    which = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise _alone(
        f"rank 0 cannot listen on {which} of {address or socket.gethostname()}: {problem}; set MASTER_PORT, on all"
        f" ranks, to a port that nothing uses there"
    )


def lead(
    place: Place,
    listener: socket.socket,
    token: bytes,
    seconds: float,
    judge: Callable[[list[Entry]], str],
    problem: str = "",
    settings: Mapping[str, Any] | None = None,
    gpu: str = "",
) -> Meeting:
    """Of rank 0: wait for all ranks. They hear how it went by `admit` or `dismiss`.

    Args:
        judge: what is wrong with the ranks that came, in their order; empty where nothing is.

    Raises:
        UserError: on every rank that came: a problem of one of them, or who has not come within `seconds`.
    """
    # As the others' comes through JSON.
    settings = None if settings is None else json.loads(json.dumps(settings))
    own = Entry(0, socket.gethostname(), os.getpid(), problem, settings, gpu)
    reception = _Reception(place, listener, token, own)
    deadline = time.monotonic() + seconds
    listener.settimeout(0.1)
    while time.monotonic() < deadline and not reception.complete:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            connection.setblocking(True)
            threading.Thread(target=reception.receive, args=(connection, deadline), daemon=True).start()
    listener.settimeout(None)
    entries, lines = reception.close()
    verdict = reception.double or judge([entries[rank] for rank in sorted(entries)])
    if not verdict and len(entries) < place.size:
        verdict = _absent(place, entries, listener, reception, seconds)
    if verdict:
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.send({"problem": verdict})
                line.close()
        listener.close()
        raise UserError(verdict)
    outside = [line.here for line in lines.values() if not is_loopback(line.here)]
    address = (outside or [line.here for line in lines.values()])[0]
    return Meeting(
        hosts=[entries[rank].host for rank in range(place.size)],
        group=secrets.token_hex(16),
        address=_reachable(listener),
        own_address=address,
        port=int(listener.getsockname()[1]),
        listener=listener,
        lines=lines,
    )


def admit(meeting: Meeting) -> None:
    """Of rank 0, once torch's store is open: tell the others to come to it.

    Raises:
        UserError: one of them has ended meanwhile.
    """
    answer = {"problem": "", "group": meeting.group, "hosts": meeting.hosts, "address": meeting.own_address}
    for rank, line in meeting.lines.items():
        try:
            line.send(answer)
        except OSError:
            raise UserError(f"rank {rank} on {meeting.hosts[rank]} ended while the ranks met") from None


def attend(
    place: Place,
    target: Callable[[], Target],
    seconds: float,
    problem: str = "",
    settings: Mapping[str, Any] | None = None,
    gpu: str = "",
) -> Meeting:
    """Of every other rank: find rank 0, and hear its verdict.

    Args:
        target: where rank 0 is to be found; asked again after each vain try.

    Raises:
        UserError: as `lead`; or rank 0 cannot be found, on this rank only.
    """
    deadline = time.monotonic() + seconds
    line, port = _find(place, target, deadline, seconds)
    try:
        entry = {"rank": place.rank, "size": place.size, "host": socket.gethostname(), "pid": os.getpid()}
        line.send({**entry, "problem": problem, "settings": settings, "gpu": gpu})
        # Rank 0 began to wait no later than now.
        answer = line.receive(time.monotonic() + seconds + _ANSWER_SECONDS)
    except (OSError, StrangerError) as error:
        raise _alone(
            f"rank 0, met at {place.address} port {port}, ended before all ranks had come ({error}); see what it said"
        ) from None
    if answer.get("problem"):
        raise UserError(str(answer["problem"]))
    return Meeting(
        hosts=[str(host) for host in answer["hosts"]],
        group=str(answer["group"]),
        address=line.there,
        own_address=str(answer["address"]) if is_loopback(line.here) else line.here,
        port=port,
        listener=None,
        lines={0: line},
    )


class _Reception:
    """Rank 0's list of who has come; connections are heard in threads of their own, so that none holds up others."""

    def __init__(self, place: Place, listener: socket.socket, token: bytes, own: Entry) -> None:
        self._place, self._listener, self._token = place, listener, token
        self._entries: dict[int, Entry] = {0: own}
        self._lines: dict[int, Line] = {}
        self._lock = threading.Lock()
        self._open = True
        self.double = ""
        """What is wrong with the ranks' numbers."""
        self.strangers = 0

    @property
    def complete(self) -> bool:
        return len(self._entries) == self._place.size or bool(self.double)

    def receive(self, connection: socket.socket, deadline: float) -> None:
        line = Line(connection)
        try:
            soon = min(deadline, time.monotonic() + _ANSWER_SECONDS)
            line.answer(self._token, soon)
            said = line.receive(soon + _ANSWER_SECONDS)
            number, gpu = int(said["rank"]), str(said["gpu"])
            entry = Entry(number, str(said["host"]), int(said["pid"]), said["problem"], said["settings"], gpu)
            size = int(said["size"])
        except (OSError, StrangerError, KeyError, TypeError, ValueError):
            self.strangers += 1
            line.close()
            return
        connection.settimeout(None)
        with self._lock:
            self._note(entry, size, line)

    def _note(self, entry: Entry, size: int, line: Line) -> None:
        if not self._open:
            line.close()
            return
        known = self._entries.get(entry.rank)
        if size != self._place.size or not 0 <= entry.rank < size:
            self.double = (
                f"rank {entry.rank} on {entry.host} was started for WORLD_SIZE {size}, but rank 0 for"
                f" {self._place.size}; give all ranks the same"
            )
        elif known is not None:
            self.double = (
                f"two processes are rank {entry.rank}: process {known.pid} on {known.host} and process {entry.pid} on"
                f" {entry.host}; give each a RANK of its own, and each run its own MASTER_PORT"
            )
        if self.double:
            # It hears the verdict too.
            self._lines[-1 - len(self._lines)] = line
            return
        self._entries[entry.rank], self._lines[entry.rank] = entry, line

    def close(self) -> tuple[dict[int, Entry], dict[int, Line]]:
        """Whoever comes from now on is too late."""
        with self._lock:
            self._open = False
            return self._entries, self._lines


def _absent(
    place: Place, entries: Mapping[int, Entry], listener: socket.socket, reception: _Reception, seconds: float
) -> str:
    missing = spans([rank for rank in range(place.size) if rank not in entries])
    hosts = dict.fromkeys(entries[rank].host for rank in sorted(entries))
    came = "; ".join(
        f"rank(s) {spans([rank for rank, entry in sorted(entries.items()) if entry.host == host])} on {host}"
        for host in hosts
    )
    strangers = (
        f"; {reception.strangers} other connection(s) came, of no rank of this run" if reception.strangers else ""
    )
    return (
        f"{place.size - len(entries)} of {place.size} ranks did not come within {seconds:g} s: rank(s) {missing}; here"
        f" are {came}{strangers}; rank 0 listens on port {listener.getsockname()[1]} of {socket.gethostname()}, and"
        f" MASTER_ADDR is {place.address}: start all ranks with that machine's address, or give slow ones longer by"
        f" {DEADLINE}"
    )


def _find(place: Place, target: Callable[[], Target], deadline: float, seconds: float) -> tuple[Line, int]:
    """The connection to rank 0, which may listen on any of the target's ports."""
    pause, longest = _PAUSES
    problem = "nothing answers"
    while True:
        ports, token = target()
        for port in ports:
            try:
                return _knock(place.address, port, token, deadline), port
            except ConnectionRefusedError:
                problem = problem if "no rank 0" in problem else "nothing listens there"
            except StrangerError as error:
                problem = f"what answers on port {port} is no rank 0 of this run ({error})"
            except OSError as error:
                problem = str(error.strerror or error)
                break  # the machine, not the port
        if time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
        pause = min(2 * pause, longest)
    where = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise _alone(
        f"did not find rank 0 at MASTER_ADDR {place.address}, {where}, within {seconds:g} s from"
        f" {socket.gethostname()}: {problem}; give the address of the machine of rank 0, or more time by {DEADLINE}"
    )


def _knock(address: str, port: int, token: bytes, deadline: float) -> Line:
    """A connection to rank 0 of this run.

    Raises:
        StrangerError: somebody else listens there.
        OSError: nobody does, or the machine cannot be reached.
    """
    wait = max(0.001, min(_ANSWER_SECONDS, deadline - time.monotonic()))
    connection = socket.create_connection((address, port), timeout=wait)
    if connection.getsockname() == connection.getpeername():
        # Linux connects a port to itself where the kernel happens to draw the same number.
        connection.close()
        raise ConnectionRefusedError
    line = Line(connection)
    try:
        line.greet(token, min(deadline, time.monotonic() + _ANSWER_SECONDS))
    except (OSError, StrangerError) as error:
        line.close()
        raise StrangerError(str(error) or "it says nothing") from None
    return line


def _reachable(listener: socket.socket) -> str:
    """The address by which the machine itself reaches its listener."""
    address = str(listener.getsockname()[0])
    return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(address, address)


def spans(ranks: list[int]) -> str:
    """Numbers in ascending order as a short list: 1-3, 7."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in _runs(ranks))


def _runs(ranks: list[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for rank in ranks:
        if last is not None and first is not None and rank != last + 1:
            yield first, last
            first = rank
        first, last = rank if first is None else first, rank
    if first is not None and last is not None:
        yield first, last


def _alone(problem: str) -> UserError:
    error = UserError(problem)
    error.everywhere = False
    return error
