"""Running a function on real gloo ranks, each a process of its own."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from llmscale.parity.pool import RankPool

# More than the pool's own: what a whole run imports late.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preload"])


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`function(*arguments)` on `world_size` new ranks at once; returns their results in rank order.

    `function` must live in a module. The launcher's variables are set, the process group is the function's matter. A
    rank that raises fails the test with its traceback, a rank that hangs fails it after `timeout` seconds.
    """
    with RankPool() as pool:
        try:
            return pool.run(world_size, function, *arguments, timeout=timeout)
        except RuntimeError as error:
            raise AssertionError(str(error)) from None
