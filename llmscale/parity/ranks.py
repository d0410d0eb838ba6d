"""Ranks of one machine that run functions: what a launcher would start, without its seconds of imports."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import random
import secrets
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from data_pipeline.base.errors import UserError

_GRACE = 2.0
"""Seconds that the processes have to end by themselves."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["llmscale.parity.preload"])


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`function(*arguments)` on `ranks` new ranks at once; the results in rank order.

    The ranks are forked from one parent that has torch and DeepSpeed imported, and end with the function: DeepSpeed
    leaves hooks, process groups and numbers of modules behind, which would slow and confuse what runs next.

    Args:
        ranks: how many.
        function: of a module. The launcher's variables are set; the process group is the function's matter, and it
            must leave it.
        timeout: seconds after which ranks count as hanging.

    Raises:
        UserError: what a rank met.
        RuntimeError: a rank failed, with its traceback, died or hangs.
    """
    port, token = free_port(), secrets.token_hex(16)
    started = [_start(rank, ranks, port, token, function, arguments) for rank in range(ranks)]
    try:
        return _collect([pipe for _, pipe in started], time.monotonic() + timeout)
    except BaseException:
        # Some may wait for one that failed.
        for process, _ in started:
            process.kill()
        raise
    finally:
        end = time.monotonic() + _GRACE
        for process, pipe in started:
            pipe.close()
            process.join(timeout=max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    """A port that nobody uses now, below those that the kernel gives to connections, which would take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def _start(
    rank: int, ranks: int, port: int, token: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    ours, theirs = _context.Pipe()
    # No daemon: a rank has loader workers of its own.
    process = _context.Process(target=_rank, args=(theirs, rank, ranks, port, token, function, arguments), daemon=False)
    process.start()
    theirs.close()
    return process, ours


def _collect(pipes: list[Any], end: float) -> list[Any]:
    ranks = len(pipes)
    results: dict[int, Any] = {}
    while len(results) < ranks:
        waiting: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready: list[Any] = multiprocessing.connection.wait(list(waiting), timeout=1)
        for pipe in ready:
            rank = waiting[pipe]
            try:
                problem, value = pipe.recv()
            except (EOFError, ConnectionError):
                raise RuntimeError(f"rank {rank} of {ranks} died") from None
            if isinstance(problem, UserError):
                raise problem
            if problem is not None:
                raise RuntimeError(f"rank {rank} of {ranks} failed:\n{problem}")
            results[rank] = value
        if time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted({*range(ranks)} - {*results})} of {ranks} hang")
    return [results[rank] for rank in range(ranks)]


def _rank(
    pipe: Any, rank: int, ranks: int, port: int, token: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        # Somebody else may have taken the port meanwhile.
        LLMSCALE_PORTS="16",
        LLMSCALE_TOKEN=token,
    )
    with contextlib.suppress(BrokenPipeError):
        try:
            pipe.send((None, function(*arguments)))
        except UserError as error:
            pipe.send((error, None))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
