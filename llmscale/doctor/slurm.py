"""Slurm: its commands and settings, and a job in which a signal arrives."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.base.durable import temporary_folder
from data_pipeline.base.errors import UserError
from launcher.slurm import cluster_environment
from llmscale.doctor.finding import Finding

_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
_JOB = """#!/bin/bash
#SBATCH --job-name=llmscale-doctor
#SBATCH --time=3
#SBATCH --output=/dev/null
cd {folder} || exit
srun bash -c 'trap "touch signalled; exit 75" USR1; hostname > started; while :; do sleep 0.2; done'
echo $? > code
"""
_SIGNAL_SECONDS = 60.0
"""How long a signal may take from scancel to the rank."""


def examine_slurm(folder: Path, seconds: float) -> Iterator[Finding]:
    """What is wrong with Slurm for runs in `folder`.

    Args:
        seconds: how long a small job may wait in the queue.
    """
    missing = [command for command in _COMMANDS if _answer("which", command) is None]
    if missing:
        text = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on the PATH"
        yield Finding("fail", "Slurm", text, "go to a login node of the cluster, or load its module")
        return
    settings = _settings()
    if not settings:
        yield Finding("fail", "Slurm", "the controller does not answer (scontrol show config)", "look at scontrol ping")
        return
    yield Finding("pass", "Slurm", f"{settings.get('SLURM_VERSION', 'of unknown version')}, {_partitions()}")
    yield from examine_settings(settings)
    yield from _signal(folder, seconds)


def examine_settings(settings: Mapping[str, str]) -> Iterator[Finding]:
    """What `scontrol show config` says, for jobs that save and go on."""
    kill = _seconds(settings.get("KillWait", ""))
    text = f"{kill} s from scancel's SIGTERM to the kill"
    if kill is not None and kill < 30:
        fix = "save before you cancel: scancel --signal=TERM JOB; or let the administrator raise KillWait"
        yield Finding("warn", "KillWait", text, fix)
    elif kill is not None:
        yield Finding("pass", "KillWait", text)
    if settings.get("JobRequeue", "1") == "0":
        fix = "give --requeue, which slurm/train.sbatch does, or chain jobs: launch slurm --chain N"
        yield Finding("warn", "JobRequeue", "jobs do not go back into the queue by themselves", fix)
    else:
        yield Finding("pass", "JobRequeue", "jobs may go back into the queue")
    noticed = _seconds(settings.get("SlurmdTimeout", ""))
    told = _seconds(os.environ.get("SLURM_WAIT", ""))
    wait = 75 if told is None else told
    limit = f"{wait} s" if wait else "0: no limit"
    if noticed is not None and noticed >= wait and told != 0:  # 0: they wait for ever (srun's manual)
        fix = f"for a requeue after a dead node, put `export SLURM_WAIT={noticed + 30}` into slurm/cluster.env"
        text = (
            f"a dead node is noticed after {noticed} s, but ranks that failed end the job after {wait} s (SLURM_WAIT)"
        )
        yield Finding("warn", "SlurmdTimeout", text, fix)
    elif noticed is not None:
        yield Finding("pass", "SlurmdTimeout", f"a dead node is noticed after {noticed} s, below SLURM_WAIT ({limit})")


def _signal(folder: Path, seconds: float) -> Iterator[Finding]:
    """Submit a job of one task, send it USR1, and see what arrives."""
    job = ""
    environment = None
    try:
        environment = cluster_environment()
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_folder(folder.resolve(), ".doctor-")
    except (OSError, UserError) as error:
        yield Finding("fail", "test job", str(error), "correct it, and ask again")
        return
    try:
        script = _JOB.format(folder=shlex.quote(str(probe)))
        result = subprocess.run(
            ["sbatch", "--parsable"], input=script, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            yield Finding("fail", "test job", f"sbatch refused it: {result.stderr.strip()}", "see slurm/cluster.env")
            return
        job = result.stdout.strip().partition(";")[0]
        if not _wait(probe / "started", seconds):
            state = _answer("squeue", "--noheader", "--job", job, "--format=%T (%r)") or "gone"
            fix = f"wait longer (--wait), or see whether {folder} is on a file system that the nodes share"
            yield Finding("warn", "test job", f"job {job} has left no file after {seconds:g} s: {state}", fix)
            return
        node = (probe / "started").read_text(encoding="utf-8").strip()
        yield Finding("pass", "test job", f"job {job} ran on {node} and shares {folder} with this machine")
        sent = time.monotonic()
        _answer("scancel", "--signal=USR1", job)
        if _wait(probe / "signalled", _SIGNAL_SECONDS) and _wait(probe / "code", _SIGNAL_SECONDS):
            code = (probe / "code").read_text(encoding="utf-8").strip()
            text = f"USR1 reached the rank after {time.monotonic() - sent:.1f} s, and its exit code {code} the job"
            yield Finding("pass" if code == "75" else "fail", "signal", text)
        else:
            fix = "runs cannot save before a time limit; ask the administrator about job signals"
            yield Finding("fail", "signal", f"USR1 did not reach a rank within {_SIGNAL_SECONDS:g} s", fix)
    finally:
        if job:
            _answer("scancel", job)
        for path in (*probe.iterdir(), probe):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()


def _wait(path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.scandir(path.parent).close()  # NFS looks again then
            if path.exists() and (path.name == "signalled" or path.stat().st_size):
                return True
        time.sleep(0.2)
    return False


def _settings() -> dict[str, str]:
    text = _answer("scontrol", "show", "config") or ""
    return {
        name.strip(): value.strip()
        for name, equals, value in (line.partition("=") for line in text.splitlines())
        if equals
    }


def _partitions() -> str:
    names = (_answer("sinfo", "--noheader", "--format=%R %l %D") or "").split("\n")
    shown = [" ".join(name.split()) for name in names if name.strip()]
    return f"partitions (limit, nodes): {', '.join(shown[:8])}" if shown else "no partition that you may use"


def _seconds(text: str) -> int | None:
    """Of `30 sec` or `30`."""
    match = re.match(r"(\d+)\b", text)
    return int(match[1]) if match else None


def _answer(*command: str) -> str | None:
    """Stdout of a command; None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
