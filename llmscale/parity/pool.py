"""Processes on this machine that run one job after the other as the ranks of a process group."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from data_pipeline.errors import UserError

_GRACE = 2.0
"""Seconds that the processes have to end by themselves."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["llmscale.parity.preload"])


class RankPool:
    """Ranks forked from one parent that has torch and DeepSpeed imported; they start when needed.

    Use it in a `with` block. After a failure the processes are replaced, since some may wait for one that failed.
    """

    def __init__(self) -> None:
        self._ranks: list[tuple[Any, Any]] = []

    def __enter__(self) -> RankPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 600) -> list[Any]:
        """`function(*arguments)` on `ranks` ranks at once, with the launcher's variables set.

        Args:
            function: of a module; it joins and leaves the process group itself.
            timeout: seconds after which the ranks count as hanging.

        Returns:
            The results in rank order.

        Raises:
            UserError: what a rank met.
            RuntimeError: a rank failed, with its traceback, died or hangs.
        """
        while len(self._ranks) < ranks:
            self._ranks.append(_start())
        port = free_port()
        try:
            for rank, (_, pipe) in enumerate(self._ranks[:ranks]):
                pipe.send((rank, ranks, port, function, arguments))
            return _collect([pipe for _, pipe in self._ranks[:ranks]], time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for _, pipe in self._ranks:
            pipe.close()
        end = time.monotonic() + _GRACE
        for process, _ in self._ranks:
            process.join(timeout=max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._ranks.clear()


def _collect(pipes: list[Any], end: float) -> list[Any]:
    ranks = len(pipes)
    results: dict[int, Any] = {}
    while len(results) < ranks:
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        for pipe in multiprocessing.connection.wait(list(waiting), timeout=1):
            rank = waiting[pipe]
            try:
                problem, value = pipe.recv()  # type: ignore[union-attr, call-arg]
            except EOFError:
                raise RuntimeError(f"rank {rank} of {ranks} died") from None
            if isinstance(problem, UserError):
                raise problem
            if problem is not None:
                raise RuntimeError(f"rank {rank} of {ranks} failed:\n{problem}")
            results[rank] = value
        if time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted({*range(ranks)} - {*results})} of {ranks} hang")
    return [results[rank] for rank in range(ranks)]


def free_port() -> int:
    """A port that nobody uses now, below those that the kernel gives to connections, which would take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def _start() -> tuple[Any, Any]:
    ours, theirs = _context.Pipe()
    # No daemon: a rank has loader workers of its own.
    process = _context.Process(target=_serve, args=(theirs,), daemon=False)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Any) -> None:
    """Run what comes through the pipe until it is closed."""
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage at each start of ZeRO 3, which would walk all that was imported
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            rank, ranks, port, function, arguments = pipe.recv()
            os.environ.update(
                RANK=str(rank),
                WORLD_SIZE=str(ranks),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            try:
                pipe.send((None, function(*arguments)))
            except UserError as error:
                pipe.send((error, None))
            except BaseException:
                pipe.send((traceback.format_exc(), None))
