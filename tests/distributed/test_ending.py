"""A process whose threads are still in torch's C++ when it ends keeps the exit code that it has earned."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time, torch
from llmscale.distributed.ending import last_block

def work():
    values = torch.randn(100_000)
    while True:
        values + values

with last_block():
    atexit.register(lambda: print("registered"))
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    {ends}
"""
"""Without the block such a process aborts every time."""


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("sys.exit(75)", 75),
        pytest.param("sys.exit('a sentence')", 1, marks=pytest.mark.slow),
        pytest.param("pass", 0, marks=pytest.mark.slow),
        pytest.param("raise ValueError('a fault')", 1, marks=pytest.mark.slow),
        pytest.param("raise KeyboardInterrupt", 130, marks=pytest.mark.slow),
    ],
)
def test_the_block_decides_how_the_process_ends(ends: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(ends=ends)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "registered\n"), done.stderr
    assert "terminate called" not in done.stderr
    assert ("a fault" in done.stderr) == ("a fault" in ends)
    assert ("a sentence" in done.stderr) == ("a sentence" in ends)


def test_a_stream_that_is_closed_or_full_is_no_traceback() -> None:
    script = "from llmscale.distributed.ending import last_block\nwith last_block():\n    print('x')\n"
    for shell, code in (('exec "$0" -c "$1" >&-', 0), ('exec "$0" -c "$1" > /dev/full', 1)):
        words = ["bash", "-c", shell, sys.executable, script]
        kept = os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=kept)
        assert (done.returncode, done.stderr) == (code, "")
