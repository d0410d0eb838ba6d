"""Whether a node is fit for a rank, before any rank waits for another: `python -m launcher.node_check` on each node.

Imports no torch: it takes a second. The job's first node decides what comes of it (`launcher.nodes`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MOST_SKEW = 30.0
"""Seconds that a node's clock may differ: files that seem to be of the future confuse make, tokens and people."""
USED_SHARE = 0.1
"""Of a GPU's memory, above which somebody else has it."""


@dataclass(frozen=True)
class Wanted:
    """What a node is asked for."""

    run: str
    """The run folder, which all nodes share."""
    mark: str
    """Name of a file in it that the first node has written; empty: there is only one node."""
    address: str
    """Name of the node where ranks meet."""
    gpus: bool
    free_bytes: int
    """Which the run folder's file system must still have."""


def problems(wanted: Wanted, seconds: float = 20.0) -> list[str]:
    """What is wrong with this node, in sentences.

    Args:
        seconds: how long a file may take to be seen from another node.
    """
    found = [_folder(wanted, seconds), _room(wanted), _address(wanted.address)]
    if wanted.gpus:
        found.append(_gpus())
    return [problem for problem in found if problem]


def _folder(wanted: Wanted, seconds: float) -> str:
    end = time.monotonic() + seconds
    mark = Path(wanted.run) / wanted.mark
    while wanted.mark and not mark.exists():
        if time.monotonic() > end:
            return f"it does not see the run folder {wanted.run} that the first node writes to"
        time.sleep(0.2)
    try:
        own = Path(wanted.run) / f".node-check-{socket.gethostname()}-{os.getpid()}"
        own.write_text("written by the check of nodes before a job")
        own.unlink()
    except OSError as error:
        return f"it cannot write in the run folder {wanted.run}: {error.strerror}"
    return ""


def _room(wanted: Wanted) -> str:
    try:
        free = shutil.disk_usage(wanted.run).free
    except OSError as error:
        return f"it cannot look at the disk of {wanted.run}: {error.strerror}"
    if free >= wanted.free_bytes:
        return ""
    return f"the disk of {wanted.run} has {free:,} bytes free there, but a checkpoint takes {wanted.free_bytes:,}"


def _address(name: str) -> str:
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return f"it does not know the address of {name}: {error.strerror or error}"
    return ""


def _gpus() -> str:
    """What is wrong with the GPUs that this process sees."""
    query = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""  # GPUs of another maker, of which the ranks will tell
    except subprocess.TimeoutExpired:
        return "its nvidia-smi does not answer within 30 s"
    if done.returncode or not done.stdout.strip():
        return f"its nvidia-smi says: {(done.stderr or done.stdout).strip() or 'no GPU'}"
    return busy_gpu(done.stdout)


def busy_gpu(table: str) -> str:
    """The first GPU of nvidia-smi's table of index, used and total memory that somebody else uses, in a sentence."""
    for line in table.strip().splitlines():
        try:
            index, used, total = (float(word) for word in line.split(","))
        except ValueError:
            return f"its nvidia-smi says: {line}"
        if used > USED_SHARE * total:
            return f"GPU {index:.0f} has {used:.0f} of {total:.0f} MiB in use before the job has begun"
    return ""


def main() -> None:
    """Print one line of JSON: the node, its clock, and what is wrong."""
    wanted = Wanted(**json.loads(sys.argv[1]))
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    found = problems(wanted)
    print(json.dumps({"node": node, "time": time.time(), "problems": found}), flush=True)


if __name__ == "__main__":
    main()
