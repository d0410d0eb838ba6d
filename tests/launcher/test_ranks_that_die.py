"""A rank that is killed while the others start ends the run, in words and in time."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_run import losses, write_tiny_run

ROOT = Path(__file__).resolve().parents[2]
KILLER = '''
"""Read by Python as it starts: rank 1 kills itself once it has imported MODULE."""
import os, sys, threading, time

def watch():
    while {module!r} not in sys.modules:
        time.sleep(0.001)
    open({mark!r}, "w").close()
    os.kill(os.getpid(), 9)

if os.environ.get("RANK") == "1":
    threading.Thread(target=watch, daemon=True).start()
'''


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("torch.distributed", id="before-it-joins", marks=pytest.mark.slow),
        pytest.param("deepspeed.runtime.engine", id="while-the-engine-starts"),
    ],
)
def test_a_rank_killed_at_the_start_ends_all_within_30_seconds(tmp_path: Path, module: str) -> None:
    write_tiny_run(tmp_path)
    mark, site = tmp_path / "killed", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(KILLER.format(module=module, mark=str(mark)))
    process = subprocess.Popen(
        [sys.executable, "-m", "llmscale", "launch", "local", "config.yaml", "--nproc", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.communicate(timeout=120)
    ended = time.time()
    assert process.returncode == 1, errors
    assert ended - mark.stat().st_mtime < 30
    assert "Traceback" not in errors
    killed = f"rank 1 of 2 on {socket.gethostname()} was killed by signal 9 (SIGKILL: out of memory?)"
    log = "its output is in run/logs/rank-00001.log"
    if module == "torch.distributed":
        assert errors.splitlines()[-1] == f"{killed} and ended the run before its first step; {log}"
    else:
        reason = f"{killed} after step 0 and ended the run; there is no checkpoint yet"
        assert errors.splitlines()[-1] == f"{reason}; {log}"
        outcome = json.loads((tmp_path / "run/outcome.json").read_text())
        assert (outcome["outcome"], outcome["reason"], outcome["step"]) == ("failed", reason, 0)
        assert outcome["lost"] == {"rank": 1, "node": socket.gethostname(), "signal": "SIGKILL"}
    assert sum("rank" in line and "llmscale:" in line for line in errors.splitlines()) <= 1


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("preempted", 75)])
def test_a_rank_that_dies_when_the_run_is_over_changes_nothing(tmp_path: Path, outcome: str, code: int) -> None:
    """As one whose driver or network library crashes while it is taken down."""
    write_tiny_run(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import atexit, os, sys, threading, time\n"
        "def late():\n"
        f"    while {outcome!r} not in open('run/outcome.json').read():\n"
        "        time.sleep(0.01)\n"
        "    os.abort()\n"
        "def wait():\n"
        "    while 'llmscale.train.start' not in sys.modules:\n"
        "        time.sleep(0.01)\n"
        "    atexit.register(late)\n"
        "if os.environ.get('RANK') == '1':\n    threading.Thread(target=wait, daemon=True).start()\n"
    )
    options = ["train.steps=100000"] if outcome == "preempted" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "llmscale", "launch", "local", "config.yaml", "--nproc", "2", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if outcome == "preempted":
        while len(losses(tmp_path / "run")) < 2:
            time.sleep(0.1)
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    warning = f"warning: rank 1 of 2 was killed by signal 6 (SIGABRT) when run was {outcome} already; its output is in"
    assert errors.splitlines()[-1] == f"{warning} run/logs/rank-00001.log"
    assert json.loads((tmp_path / "run/outcome.json").read_text())["outcome"] == outcome
