"""Ranks that fail by themselves: a module that Python reads as it starts, planted beside a run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOMB = '''
"""Read by Python as it starts: rank {rank} does `{deed}` once the ledger has {steps} rows, so often."""
import os, pathlib, signal, threading, time

def watch():
    ledger, marks = pathlib.Path({ledger!r}), pathlib.Path({marks!r})
    for number, steps in enumerate({steps!r}):
        if (marks / str(number)).exists():
            continue
        while not ledger.exists() or ledger.read_bytes().count(b"\\n") < steps:
            time.sleep(0.002)
        (marks / str(number)).touch()
        {deed}
        return

if os.environ.get("RANK") == "{rank}":
    threading.Thread(target=watch, daemon=True).start()
'''
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"


def plant(folder: Path, rank: int, deed: str, steps: list[int]) -> Path:
    """Let a rank of the run in `folder` do `deed`, once for each of `steps`, when the ledger has so many rows. Returns
    the folder that is to be on PYTHONPATH."""
    marks, site = folder / "marks", folder / "site"
    marks.mkdir()
    site.mkdir()
    ledger = folder / "run/ledger.jsonl"
    text = BOMB.format(rank=rank, deed=deed, steps=steps, ledger=str(ledger), marks=str(marks))
    (site / "sitecustomize.py").write_text(text)
    return site


def launch(folder: Path, *arguments: object, site: Path | None = None) -> subprocess.Popen[str]:
    """`llmscale launch local` in `folder`, with the planted module where there is one."""
    path = os.pathsep.join(str(place) for place in (site, ROOT) if place is not None)
    return subprocess.Popen(
        [sys.executable, "-m", "llmscale", "launch", "local", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
