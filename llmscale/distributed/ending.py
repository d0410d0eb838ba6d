"""How a process ends that has run torch."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator

from llmscale.distributed.exit_codes import FAILED, INTERRUPTED


@contextlib.contextmanager
def last_block() -> Iterator[None]:
    """What this process does last: how the block ends is how the process ends.

    Everything registered by `atexit` since is still called, but Python is not taken down. Threads of torch's C++ are
    then still there: those of gloo outlive their process group, since DeepSpeed keeps groups. One that lets go of a
    tensor then asks for the interpreter's lock, and the process aborts ("terminate called without an active
    exception", https://github.com/pytorch/pytorch/issues/38228), whatever exit code it has earned.
    """
    ended: list[int] = []
    # What is registered first is called last.
    atexit.register(_end, ended)
    try:
        yield
    except SystemExit as error:
        ended.append(error.code if isinstance(error.code, int) else FAILED if error.code else 0)
        raise
    except BaseException as error:
        ended.append(INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        raise
    ended.append(0)


def _end(ended: list[int]) -> None:
    if not ended:  # a forked child, whose end is its own
        return
    code = ended[0]
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # a terminal or a pipe that is closed
            code = code or FAILED
    os._exit(code)
