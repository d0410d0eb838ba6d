"""Real `llmscale` processes on a tiny run, and what they leave behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_pipeline.base.records import read_records

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def llmscale(*arguments: object, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start the command line and go on."""
    return subprocess.Popen(
        command(*arguments), cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llmscale", *map(str, arguments)]


def metrics(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step, exactly as recorded; the last attempt of each step counts."""
    rows = read_records(run / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def evaluations(run: Path) -> list[dict[str, Any]]:
    rows = read_records(run / "metrics.jsonl")
    return [{"step": row["step"], **row["evaluation"]} for row in rows if "evaluation" in row]


def ledger(run: Path) -> list[tuple[int, int, int, str]]:
    """(step, first sample, last sample, sum) of every step."""
    rows = read_records(run / "ledger.jsonl")
    return [(row["step"], row["first_sample"], row["last_sample"], row["sum"]) for row in rows]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, to prove that nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
