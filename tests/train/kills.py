"""Kills at random instants, seeded: `python -m tests.train.kills --seed 0 --kills 100` says how many were survived.

Each run of a few steps, with saves and evaluations all the time, is killed several times: after a random number of its
own operations on files (from the lock it takes to the last rename of a checkpoint) and a random fraction of a second, a
random rank, or all of them, get SIGKILL. The run is then continued, and in the end must be one that was never killed.
"""

import argparse
import functools
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmscale.checkpoint.manifest import read_manifest
from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command
from tests.train.runs import evaluations, ledger, metrics

STEPS = 18
SETTINGS = (
    f"train.steps={STEPS}",
    "checkpoint.interval=2",
    "checkpoint.keep=2",
    "evaluation.interval=3",
    "evaluation.batch=4",
    "evaluation.max_samples=16",
    "data.holdout=0.1",
)
Layout = tuple[int, tuple[str, ...]]
"""Number of ranks, and settings."""
OWN: Layout = (2, ("engine.zero_stage=2",))
OTHERS: list[Layout] = [
    (1, ("train.micro_batch=8",)),
    (2, ("engine.zero_stage=3",)),
    (2, ("parallel.pipeline=2",)),
    (2, ("engine.zero_stage=1", "data.workers=1")),
]
LAST_SECONDS = 60.0
"""How long the ranks that are left may live on."""


@dataclass(frozen=True)
class Kill:
    """One kill, as the seed says."""

    operation: int
    """Number of the operation on a file of the run after which it comes."""
    seconds: float
    """How long after it."""
    watched: int
    """The rank that counts."""
    victim: int | None
    """The rank that is killed; None: all."""


def count_operations(run: str, number: int, pipe: str) -> None:
    """In a rank: write to `pipe` when the run's files have been opened, renamed and removed `number` times."""
    left = [number]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and run in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                descriptor = os.open(pipe, os.O_WRONLY)
                os.write(descriptor, b".")
                os.close(descriptor)

    sys.addaudithook(hear)


def start(folder: Path, layout: Layout, number: int = 0, watched: int = 0, seconds: float = 0.0) -> list[Command]:
    """The ranks of the run in `folder`, of which one counts its operations."""
    ranks, settings = layout
    place = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    count = functools.partial(count_operations, str(folder / "run"), number, str(folder / "pipe"))
    where = f"run.directory={json.dumps(str(folder / 'run'))}"
    return [
        Command(
            *("train", "config.yaml", *SETTINGS, *settings, where),
            cwd=folder,
            prepare=count if rank == watched and number else None,
            **(place | {"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}),
        )
        for rank in range(ranks)
    ]


def killed(folder: Path, layout: Layout, kill: Kill) -> bool:
    """Start the run and kill it; False where it had ended before."""
    pipe = folder / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    commands = start(folder, layout, kill.operation, kill.watched)
    try:
        while not select.select([reading], [], [], 0.05)[0]:
            if not any(command.process.is_alive() for command in commands):
                return False
        time.sleep(kill.seconds)
        victims = commands if kill.victim is None else [commands[kill.victim]]
        for command in victims:
            os.kill(command.process.pid, signal.SIGKILL)
    finally:
        os.close(reading)
        ended = [command.finish(LAST_SECONDS) for command in commands]
    return any(each.returncode == -signal.SIGKILL for each in ended)


def finish(folder: Path, layout: Layout) -> None:
    """Continue to the end."""
    for done in [command.finish(120) for command in start(folder, layout)]:
        assert done.returncode == 0, done.stderr


def weights(run: Path) -> dict[str, Any]:
    """The digests of all state in the last checkpoint."""
    manifest = read_manifest(max((run / "checkpoints").glob("step-*")))
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith("rank-")}


def require_same(run: Path, reference: Path, *, exact: bool) -> None:
    """Compare with the run that was never killed: to the bit, or the figures within 1e-5 on other layouts."""
    assert ledger(run) == ledger(reference), "the ledger differs"
    found, expected = (metrics(each) for each in (run, reference))
    assert [row[0] for row in found] == [row[0] for row in expected] == list(range(1, STEPS + 1))
    if exact:
        assert found == expected, "losses differ"
        assert evaluations(run) == evaluations(reference), "evaluations differ"
        assert weights(run) == weights(reference), "weights differ"
        return
    for (step, loss, _), (_, other, _) in zip(found, expected, strict=True):
        assert abs(loss - other) <= 1e-5 * other, f"the loss of step {step} is {loss}, not {other}"
    for row, other in zip(evaluations(run), evaluations(reference), strict=True):
        assert abs(row["loss"] - other["loss"]) <= 1e-5 * other["loss"], "evaluations differ"


def survived(folder: Path, seed: int, kills: int, each: int = 5) -> Iterator[tuple[list[Kill], str]]:
    """For each run, the kills that it got, and what is wrong with it in the end; nothing where all is well.

    Args:
        folder: empty; of runs that went well nothing stays.
        each: kills of a run.
    """
    reference = folder / "reference"
    reference.mkdir()
    write_tiny_run(reference)
    finish(reference, OWN)
    number = 0
    while kills > 0:
        draw = random.Random(f"{seed} {number}")
        place = folder / f"run-{number}"
        place.mkdir()
        write_tiny_run(place)
        exact = number % 2 == 0
        done: list[Kill] = []
        problem = ""
        try:
            # A start that has less left to do than that ends by itself, which is no kill.
            most = 150
            while len(done) < min(each, kills):
                layout = OWN if exact else draw.choice([OWN, *OTHERS])
                victim = draw.randrange(2 * layout[0])
                kill = Kill(
                    draw.randrange(1, most),
                    draw.random() * 0.1,
                    draw.randrange(layout[0]),
                    victim if victim < layout[0] else None,
                )
                if killed(place, layout, kill):
                    done.append(kill)
                elif (place / "run/summary.json").exists():
                    break
                most = max(20, most * 2 // 3)
            finish(place, OWN if exact else draw.choice(OTHERS))
            require_same(place / "run", reference / "run", exact=exact)
        except AssertionError as error:
            problem = str(error) or repr(error)
        kills -= len(done)
        number += 1
        yield done, problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    good = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (kills, problem) in enumerate(survived(Path(folder), options.seed, options.kills)):
            total += len(kills)
            good += 0 if problem else len(kills)
            print(f"run {number}: {kills} {problem or 'ok'}", flush=True)
    print(json.dumps({"seed": options.seed, "kills": total, "resumed": good}))
    return 0 if good == total else 1


if __name__ == "__main__":
    sys.exit(main())
