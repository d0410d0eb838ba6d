"""This machine: packages, GPUs, memory, network, and the disk of the run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from data_pipeline.base.durable import sync_folder, temporary_path
from llmscale.distributed.interface import INTERFACE, interface_addresses
from llmscale.distributed.wire import is_loopback
from llmscale.doctor.finding import Finding

_PROBE_BYTES = 64 << 20
_SLOW_DISK = 50e6
"""Bytes per second below which checkpoints take long."""
_LITTLE_SPACE = 10 << 30
_SHARED_MEMORY = Path("/dev/shm")
_LITTLE_SHARED_MEMORY = 1 << 30
_IMPORT_SECONDS = 180
_USED_GPU = 0.1
"""Share of a GPU's memory that may be in use before a run starts."""


def examine_packages() -> Iterator[Finding]:
    """What llmscale needs, by its own metadata."""
    yield Finding("pass", "Python", f"{platform.python_version()} at {sys.executable}")
    try:
        from packaging.requirements import Requirement

        needed = [Requirement(text) for text in metadata.requires("llmscale") or []]
    except (metadata.PackageNotFoundError, ImportError):
        yield Finding("warn", "packages", "llmscale is not installed, so that nothing says which versions it needs")
        return
    wrong = []
    versions = {}
    for each in needed:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[each.name] = metadata.version(each.name)
        if each.name not in versions:
            wrong.append(f"{each.name} is not installed")
        elif not each.specifier.contains(versions[each.name], prereleases=True):
            wrong.append(f"{each.name} is {versions[each.name]}, but {each.specifier} is needed")
    if wrong:
        yield Finding("fail", "packages", "; ".join(wrong), "pip install --upgrade llmscale")
    else:
        shown = ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "deepspeed", "accelerate") if name in versions
        )
        yield Finding("pass", "packages", f"{shown}; all {len(versions)} that llmscale needs fit")


def examine_deepspeed() -> Iterator[Finding]:
    """Whether DeepSpeed can be imported, in a process of its own."""
    started = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, "-c", "import deepspeed; print(deepspeed.__version__)"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"its import does not end within {_IMPORT_SECONDS} s"
        yield Finding("fail", "DeepSpeed", late, "look at the file system")
        return
    took = time.monotonic() - started
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no reason is given"])[-1]
        yield Finding("fail", "DeepSpeed", f"cannot be imported: {last}", "pip install 'deepspeed>=0.19.8,<0.20'")
    else:
        slow = took > 60
        fix = "install Python's packages on a faster file system, or raise LLMSCALE_RENDEZVOUS_SECONDS" if slow else ""
        version = result.stdout.strip().splitlines()[-1]
        yield Finding("warn" if slow else "pass", "DeepSpeed", f"{version}, imported in {took:.1f} s", fix)


def examine_gpus() -> Iterator[Finding]:
    """The GPUs that torch sees, and their driver."""
    import torch

    driver = _drivers()
    if not torch.cuda.is_available():
        if driver:
            fix = "install a torch that is built for this driver, and look at CUDA_VISIBLE_DEVICES"
            yield Finding("fail", "GPUs", f"the driver {driver[0]} has {len(driver)}, but torch sees none", fix)
        else:
            yield Finding("warn", "GPUs", "none: runs train on the CPU", "set run.device=cpu to say so")
        return
    version = ".".join(map(str, torch.cuda.nccl.version()))
    shown = driver[0] if driver else "unknown"
    yield Finding("pass", "driver", f"{shown}, CUDA {torch.version.cuda}, NCCL {version}")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"GPU {index}"
        text = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < (1 - _USED_GPU) * total:
            yield Finding("warn", name, text, "another process uses it: look at nvidia-smi")
        else:
            yield Finding("pass", name, text)


def _drivers() -> list[str]:
    """The version of the driver for each GPU; none without one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return result.stdout.split("\n")[:-1]
    return []


def examine_memory() -> Iterator[Finding]:
    """Memory and cores of this machine, and what its processes share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    yield Finding("pass", "machine", f"{cores} cores for this process, {total / 2**30:.0f} GiB of memory")
    if _SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(_SHARED_MEMORY).total
        text = f"{size / 2**30:.1f} GiB at {_SHARED_MEMORY}"
        if size < _LITTLE_SHARED_MEMORY:
            fix = "NCCL and loader workers need 1 GiB; start the container with --shm-size=8g, say"
            yield Finding("warn", "shared memory", text, fix)
        else:
            yield Finding("pass", "shared memory", text)


def examine_network() -> Iterator[Finding]:
    """Interfaces, and by which of them other nodes reach this one."""
    known = {name: each for name, each in interface_addresses().items() if each}
    text = ", ".join(f"{name} ({each[0]})" for name, each in known.items())
    wanted = os.environ.get(INTERFACE, "")
    if wanted and not any(wanted == name or wanted in each for name, each in known.items()):
        yield Finding("fail", "interfaces", f"{INTERFACE} is '{wanted}', but there are {text}", "name one of them")
    else:
        yield Finding("pass", "interfaces", text)
    host = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        fix = f"add it to the name service or /etc/hosts, or name the network by {INTERFACE}"
        yield Finding("warn", "host name", f"{host} does not resolve", fix)
        return
    if is_loopback(address) and any(not is_loopback(each[0]) for each in known.values()):
        fix = f"ranks on several nodes need another address: set {INTERFACE} to one of the interfaces"
        yield Finding("warn", "host name", f"{host} resolves to {address}, which is this machine only", fix)
    else:
        yield Finding("pass", "host name", f"{host} resolves to {address}")


def examine_folder(folder: Path) -> Iterator[Finding]:
    """The disk below which runs are to lie: room, speed, atomic replacement and locks."""
    name = f"disk at {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        seconds, lock = _try_out(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding(
            "fail", name, f"{error.strerror} ({error.filename})", "name a folder that you may write: --folder"
        )
        return
    speed = _PROBE_BYTES / seconds
    text = f"{free / 2**30:,.0f} GiB free, {speed / 1e6:,.0f} MB/s written and synced"
    if free < _LITTLE_SPACE:
        yield Finding("warn", name, text, "a checkpoint takes 12 to 16 bytes a parameter; free some space")
    elif speed < _SLOW_DISK:
        yield Finding("warn", name, text, "put run.directory on a faster file system, or save less often")
    else:
        yield Finding("pass", name, text)
    if not lock:
        fix = "mount it with locks, or see to it yourself that no two trainings use one run directory"
        yield Finding("warn", f"locks at {folder}", "the file system knows none", fix)


def _try_out(folder: Path) -> tuple[float, bool]:
    """Seconds to write, sync and rename a file as a checkpoint is, and whether it can be locked."""
    path = folder / f".doctor-{os.getpid()}"
    temporary = temporary_path(path)
    data = os.urandom(1 << 20)
    try:
        started = time.monotonic()
        with open(temporary, "wb") as file:
            for _ in range(_PROBE_BYTES // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(folder)
        seconds = time.monotonic() - started
        with open(path, "ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return seconds, False
        return seconds, True
    finally:
        for each in (temporary, path):
            each.unlink(missing_ok=True)
