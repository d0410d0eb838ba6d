"""What a rank does in these tests, in the trainer's place: `stand_in_rank.py BEHAVIOUR FOLDER`.

It reads torchrun's variables as the trainer does, and leaves rank-N.json in FOLDER when it has started.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def all_reduce(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(RANK + 1)])
    dist.all_reduce(total)
    dist.destroy_process_group()
    (folder / f"sum-{RANK}").write_text(str(total.item()))


def save_on_signal(folder: Path) -> None:
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: received.append(number))
    announce(folder)
    while not received:
        time.sleep(0.02)
    time.sleep(0.1 * RANK)
    (folder / f"saved-{RANK}").write_text(signal.Signals(received[0]).name)
    sys.exit(75)


def announce(folder: Path) -> None:
    partial = folder / f"rank-{RANK}.partial"
    partial.write_text(
        json.dumps({"pid": os.getpid(), "terminal": sys.stdout.isatty(), "environment": dict(os.environ)})
    )
    partial.rename(folder / f"rank-{RANK}.json")


def main() -> None:
    behaviour, folder = sys.argv[1], Path(sys.argv[2])
    print(f"rank {RANK} speaks", flush=True)
    if behaviour == "save":
        save_on_signal(folder)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce(folder)
    if behaviour == "sum":
        all_reduce(folder)
    elif behaviour in ("deaf", "hang"):
        time.sleep(600)
    elif behaviour.startswith("exit-"):  # exit-CODE[-RANK]: that rank (or all) exits so, the others hang
        code, _, rank = behaviour.removeprefix("exit-").partition("-")
        if rank in ("", str(RANK)):
            sys.exit(int(code))
        time.sleep(600)
    elif behaviour == "killed" and RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "killed-first":  # rank 1 by itself, and rank 0 since rank 1 is gone, as good as at once
        while not all((folder / f"rank-{rank}.json").exists() for rank in range(2)):
            time.sleep(0.01)
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        sys.exit(1)
    elif behaviour == "mixed":  # all end by themselves, each with a code of its own
        sys.exit({0: 75, 1: 75, 2: 1}[RANK])


main()
