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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from llmscale.distributed.interface import listening_address

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
    first: str
    """Name of the node where rank 0 will be."""
    gpus: int
    """How many of them the job has on each node; 0 where the ranks use none."""
    free_bytes: int
    """Which the run folder's file system must still have."""
    address: str = ""
    """MASTER_ADDR, where somebody has chosen it."""
    port: int = 0
    """MASTER_PORT, where somebody has chosen it."""


def problems(wanted: Wanted, seconds: float = 20.0) -> list[str]:
    """What is wrong with this node, in sentences.

    Args:
        seconds: how long a file may take to be seen from another node.
    """
    found = [_folder(wanted, seconds) or _room(wanted), _address(wanted.address or wanted.first)]
    if wanted.gpus:
        found.append(_gpus(wanted.gpus))
    return [problem for problem in found if problem]


def mistake(wanted: Wanted) -> str:
    """What is wrong, on the node of rank 0, with the place that somebody has chosen for the ranks to meet, and would be
    on any other node; empty without anything."""
    advice = "take it out of slurm/cluster.env, or correct it"
    if wanted.address:
        if _address(wanted.address):
            return f"MASTER_ADDR is {wanted.address}, of which {wanted.first} does not know the address; {advice}"
        if not _is_own(wanted.address):
            return f"MASTER_ADDR is {wanted.address}, which is not {wanted.first}, where rank 0 will be; {advice}"
    if wanted.port:
        try:
            address = listening_address(wanted.address or wanted.first)
        except UserError as error:
            return str(error)
        try:
            socket.create_server((address, wanted.port), family=_family(address)).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            return f"MASTER_PORT is {wanted.port}, on which {wanted.first} cannot listen ({reason}); {advice}"
    return ""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_own(name: str) -> bool:
    """Whether a name, which is known, leads to this machine."""
    for family, kind, _, _, place in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.bind(place)
            return True
        except OSError:
            continue
    return False


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


def _gpus(count: int) -> str:
    """What is wrong with the GPUs that this process sees, of which there should be `count`."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""  # GPUs of another maker, of which the ranks will tell
    except subprocess.TimeoutExpired:
        return "its nvidia-smi does not answer within 30 s"
    if done.returncode or not done.stdout.strip():
        return f"its nvidia-smi says: {(done.stderr or done.stdout).strip() or 'no GPU'}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return unfit_gpu(done.stdout, count, [word.strip() for word in visible.split(",") if word.strip()])


def unfit_gpu(table: str, count: int, visible: Sequence[str] = ()) -> str:
    """What is wrong with GPUs, in a sentence; empty without anything.

    Args:
        table: nvidia-smi's, of index, UUID, used and total memory.
        count: how many the job has.
        visible: their indices, or the beginnings of their UUIDs; empty: all are the job's. Where Slurm does not hide
            the others, they may be another job's.
    """
    listed = 0
    for line in table.strip().splitlines():
        try:
            index, uuid, *memory = (word.strip() for word in line.split(","))
            used, total = map(float, memory)
        except ValueError:
            return f"its nvidia-smi says: {line}"
        listed += 1
        own = not visible or any(word == index or uuid.startswith(word) for word in visible)
        if own and used > USED_SHARE * total:
            return f"GPU {index} has {used:.0f} of {total:.0f} MiB in use before the job has begun"
    if listed < count:
        return f"its nvidia-smi lists {listed} GPUs, but the job has {count} there"
    return ""


def main() -> None:
    """Print one line of JSON: the node, its clock, and what is wrong."""
    wanted = Wanted(**json.loads(sys.argv[1]))
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    # The first node's alone, so that one of all says it.
    wrong = mistake(wanted) if node == wanted.first else ""
    found = problems(wanted) if not wrong else []
    print(json.dumps({"node": node, "time": time.time(), "problems": found, "mistake": wrong}), flush=True)


if __name__ == "__main__":
    main()
