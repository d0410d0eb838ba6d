"""Checkpoints with known content, and what the test processes run."""

import os
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmscale.checkpoint import Checkpoint, CheckpointError, Retention, clean
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice

SHAPES = {"embedding.weight": (13, 7), "blocks.0.norm.weight": (7,), "blocks.0.conv": (3, 2, 5), "temperature": ()}
KINDS = ("weight", "exp_avg")


def content(step: int, name: str, kind: str) -> np.ndarray:
    """What a tensor holds at a step."""
    seed = [step, zlib.crc32(f"{name}/{kind}".encode())]
    return np.random.default_rng(seed).standard_normal(SHAPES[name]).astype(np.float32)


def fragments(step: int, rank: int = 0, world: int = 1) -> Iterator[Fragment]:
    """This rank's flat part of every tensor, cut without regard to rows; some ranks hold nothing of a small tensor."""
    for name, shape in SHAPES.items():
        for kind in KINDS:
            flat = torch.from_numpy(content(step, name, kind).reshape(-1).copy())
            start, end = (flat.numel() * r // world for r in (rank, rank + 1))
            yield Fragment(name, kind, TensorSlice.whole(shape).flat_range(start, end), flat[start:end])


def save(writer: CheckpointWriter, step: int, rank: int = 0, world: int = 1) -> None:
    """Start to save a step's known content."""
    extra = {"samples": step * 8, "optimizer": {"steps": step}, "identity": {"model.layers": 2}} if rank == 0 else None
    writer.save(step, fragments(step, rank, world), extra, {"lanes": {str(rank): {"offset": step + rank}}})


def saved(directory: Path, *steps: int, **options: Any) -> CheckpointWriter:
    """Save steps from one rank and wait for each."""
    writer = CheckpointWriter(directory, **options)
    for step in steps:
        save(writer, step)
        writer.wait()
    return writer


def assert_holds(checkpoint: Checkpoint, step: int, world: int = 1) -> None:
    """The checkpoint is the whole state of `step` and of no other."""
    assert checkpoint.step == step
    assert checkpoint.manifest.samples == step * 8
    assert checkpoint.cursor() == {"lanes": {str(rank): {"offset": step + rank} for rank in range(world)}}
    assert set(checkpoint.names) == set(SHAPES)
    for name in SHAPES:
        for kind in KINDS:
            np.testing.assert_array_equal(checkpoint.full(name, kind).numpy(), content(step, name, kind))


def save_one_rank(directory: Path, steps: list[int], large_rank: int | None = None) -> str:
    """Run on a rank: save the steps; the files of `large_rank` hit a limit of their size. Returns the error, if any."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == large_rank:
        limit_file_size(1000)
    writer = CheckpointWriter(directory, rank=rank, world=world, timeout=60)
    try:
        for step in steps:
            save(writer, step, rank, world)
        writer.wait()
    except CheckpointError as error:
        return str(error)
    return ""


def limit_file_size(size: int) -> None:
    """No file of this process may grow beyond `size` bytes: writing more raises OSError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def save_for_ever(directory: Path, step: int, rank: int, world: int, report: Connection) -> None:
    """Save `step` and the next ones until killed, some twice; reports each once `wait` says that it is committed."""
    writer = CheckpointWriter(directory, rank=rank, world=world, attempt=step, retention=Retention(1))
    report.send(step - 1)
    while True:
        for _ in range(2 if step % 3 == 0 else 1):
            save(writer, step, rank, world)
            writer.wait()
            report.send(step)
        step += 1


def save_until_operation(directory: Path, steps: list[int], limit: int, report: Connection) -> None:
    """Save the steps, keeping one, and die without warning before file operation number `limit`."""
    count = 0

    def before_operation() -> None:
        nonlocal count
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_operations(directory, lambda *_: before_operation())
    clean(directory)
    writer = CheckpointWriter(directory, attempt=2, retention=Retention(1))
    for step in steps:
        save(writer, step)
        writer.wait()
        report.send(step)


def watch_operations(directory: Path, before: Callable[[str, str, str], None]) -> None:
    """Call `before(operation, path, target)` ahead of each change to a file below `directory`, in this process."""
    root = str(directory)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and root in str(arguments[0]):
            before(event, str(arguments[0]), str(arguments[1]))

    sys.addaudithook(hook)
    fsync = os.fsync

    def watched_fsync(handle: int) -> None:
        before("fsync", os.readlink(f"/proc/self/fd/{handle}"), "")
        fsync(handle)

    os.fsync = watched_fsync


def trace_operations(directory: Path, steps: list[int]) -> list[tuple[str, str, str]]:
    """The file operations of saving some steps, keeping one."""
    trace: list[tuple[str, str, str]] = []
    watch_operations(directory, lambda *operation: trace.append(operation))
    saved(directory, *steps, retention=Retention(1))
    return trace
