"""Noticing that another rank has died: the connections on which the ranks met stay open, and the kernel closes those of
a process that ends, however it ends. Each rank says a word before it ends by itself."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.base.terminal import tell
from llmscale.distributed.exit_codes import FAILED
from llmscale.distributed.wire import Line, StrangerError

GRACE_SECONDS = 15.0
"""How long a rank may live on after another has been lost; whoever waits for that one would wait for ever."""


@dataclass(frozen=True)
class Loss:
    """A rank that has ended while others went on."""

    rank: int
    host: str
    reason: str
    """What it said itself; empty where it was killed, or its machine is off or cannot be reached."""

    def __str__(self) -> str:
        if self.reason:
            return f"rank {self.rank} on {self.host} ended: {self.reason}"
        return (
            f"rank {self.rank} on {self.host} ended without a word (killed, by SIGKILL where it was out of memory, or"
            f" its machine cannot be reached)"
        )


class Watch:
    """Listens in a thread of its own to the other ranks: rank 0 to all, the others to rank 0, which passes on what it
    hears."""

    def __init__(self, rank: int, hosts: list[str], lines: Mapping[int, Line]) -> None:
        self._rank, self._hosts = rank, hosts
        self._lines = dict(lines)
        self._loss: Loss | None = None
        self._known, self._heard_out = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self.on_stuck: Callable[[Loss], int] | None = None
        """Called in the thread when this process still runs `GRACE_SECONDS` after a loss: what to exit with."""
        self.on_message: Callable[[int, dict[str, Any]], None] | None = None
        """Called in the thread with each message that another rank has sent by `send`, and its rank."""
        for line in self._lines.values():
            line.socket.settimeout(None)
        if self._lines:
            os.register_at_fork(after_in_child=self._leave_to_parent)
            threading.Thread(target=self._listen, name="watch", daemon=True).start()

    def loss(self, seconds: float = 0.0) -> Loss | None:
        """The first rank that was lost, if one is within `seconds`."""
        self._known.wait(seconds)
        return self._loss

    def outlast(self, seconds: float) -> None:
        """Wait until all whom this rank listens to have said that they end, or one is lost; at most `seconds`."""
        if self._lines:
            self._heard_out.wait(seconds)

    def send(self, message: Mapping[str, Any]) -> None:
        """Say something: rank 0 to all, the others to rank 0. Whoever is gone misses it."""
        with self._lock:
            for line in self._lines.values():
                with contextlib.suppress(OSError):
                    line.send({"says": dict(message)})

    @property
    def hosts(self) -> list[str]:
        """Of each rank."""
        return list(self._hosts)

    def close(self, reason: str = "") -> None:
        """Say that this rank ends: well, or for a reason."""
        with self._lock:
            self._closed = True
            for line in self._lines.values():
                with contextlib.suppress(OSError):
                    line.send({"ends": reason})
                line.close()

    def _leave_to_parent(self) -> None:
        """A forked worker must not keep the connection of a rank open that has died."""
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.close()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            with self._lock:
                if self._closed:
                    return
                for rank, line in self._lines.items():
                    selector.register(line.socket, selectors.EVENT_READ, rank)
            ready = [rank for rank, line in self._lines.items() if line.pending]
            while selector.get_map() and self._loss is None:
                for rank in ready:
                    if self._closed:
                        return
                    if self._hear(rank):
                        selector.unregister(self._lines[rank].socket)
                if not selector.get_map():
                    break
                # The pause sees to it that `close` is noticed.
                ready = [key.data for key, _ in selector.select(timeout=0.5)]
                if self._closed:
                    return
        self._heard_out.set()
        if self._loss is not None:
            self._end(self._loss)

    def _hear(self, rank: int) -> bool:
        """Take what a rank has to say; whether it was its last word."""
        line = self._lines[rank]
        while True:
            try:
                message = line.receive(time.monotonic() + 5)
            except (OSError, StrangerError, ValueError):
                message = {"ends": "", "killed": True}
            finally:
                with contextlib.suppress(OSError):
                    line.socket.settimeout(None)
            if "lost" in message:
                lost = int(message["lost"])
                self._tell(Loss(lost, self._hosts[lost], str(message["reason"])))
            elif message.get("ends") or message.get("killed"):
                self._tell(Loss(rank, self._hosts[rank], str(message["ends"])))
            if "says" in message and self.on_message is not None:
                self.on_message(rank, message["says"])
            goes_on = "lost" in message or "says" in message
            if not goes_on or not line.pending:
                return not goes_on

    def _tell(self, loss: Loss) -> None:
        with self._lock:
            if self._closed or self._loss is not None:
                return
            for rank, line in self._lines.items():
                if rank != loss.rank and self._rank == 0:
                    with contextlib.suppress(OSError):
                        line.send({"lost": loss.rank, "reason": loss.reason})
            self._loss = loss
        self._known.set()

    def _end(self, loss: Loss) -> None:
        """End a process that hangs where no error reaches it: in a wait for files of the lost rank, say."""
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if self._closed:
                return
            time.sleep(0.1)
        with self._lock:
            if not self._closed:
                os._exit((self.on_stuck or _say)(loss))


def _say(loss: Loss) -> int:
    tell(f"llmscale: {loss}")
    return FAILED
