"""Running a function on real gloo ranks, each a process of its own."""

import multiprocessing

from llmscale.parity.ranks import run_ranks

__all__ = ["run_ranks"]

# More than `llmscale.parity` imports before it forks: what a whole run imports late.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preload"])
