"""Running a function on real gloo ranks, each a process of its own.

The processes are forked from one clean parent that has imported torch and DeepSpeed already, since importing them anew
for every rank of every case would take most of the time of the tests.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

from llmscale.parity.pool import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`function(*arguments)` on `world_size` ranks at once; returns their results in rank order.

    `function` must live in a module. The launcher's variables are set, the process group is the function's matter. A
    rank that raises fails the test with its traceback, a rank that hangs fails it after `timeout` seconds.
    """
    port = free_port()
    queue = _context.Queue()
    processes = [
        _context.Process(target=_rank, args=(queue, rank, world_size, port, function, arguments), daemon=False)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        end = time.monotonic() + timeout
        while len(results) < world_size:
            try:
                rank, failure, value = queue.get(timeout=1)
            except Empty:
                died = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
                assert not died, f"ranks failed without a word, by exit code: {died}"
                assert time.monotonic() < end, f"ranks {sorted({*range(world_size)} - {*results})} hang"
                continue
            if failure is not None:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{failure}")
            results[rank] = value
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(world_size)]


def _rank(
    queue: Any, rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        import torch

        torch.set_num_threads(1)
        queue.put((rank, None, function(*arguments)))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
