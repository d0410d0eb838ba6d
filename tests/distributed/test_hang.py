"""Who lags, of ranks that make no progress: the judgement, and the thread that asks for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmscale.distributed.hang import Standing, lagging, standing, verdict

READING, COUNTING = (0, "reading"), (1, "counting")


def at(phase: tuple[int, str], step: int = 7, waits: bool = False) -> Standing:
    return Standing(step, *phase, waits, "llmscale/x.py:3 f")


@pytest.mark.parametrize(
    ("standings", "ranks", "expected"),
    [
        pytest.param({0: at(COUNTING, waits=True), 2: at(COUNTING, waits=True)}, 4, [1, 3], id="who-gives-no-answer"),
        pytest.param({0: at(COUNTING), 1: at(READING), 2: at(COUNTING)}, 3, [1], id="who-is-in-an-earlier-phase"),
        pytest.param({0: at(READING, step=8), 1: at(COUNTING, step=7)}, 2, [1], id="who-is-in-an-earlier-step"),
        pytest.param({0: at(COUNTING, waits=True), 1: at(COUNTING)}, 2, [1], id="who-waits-for-nobody"),
        pytest.param({0: at(COUNTING, waits=True), 1: at(COUNTING, waits=True)}, 2, [], id="all-wait"),
        pytest.param({0: at(COUNTING), 1: at(COUNTING)}, 2, [], id="nobody-waits"),
    ],
)
def test_those_lag_for_whom_the_others_wait(standings, ranks, expected):
    assert lagging(standings, ranks) == expected


def test_the_verdict_names_rank_node_and_place_and_puts_the_others_together():
    standings = {0: at(COUNTING, waits=True), 1: at(READING), 2: at(COUNTING, waits=True)}
    assert verdict(standings, ["n1", "n2", "n3"], 12.34) == (
        "no progress for 12.3 s: rank 1 on n2 is in reading of step 7 (llmscale/x.py:3 f); rank(s) 0, 2 are in counting"
        " of step 7 (llmscale/x.py:3 f)"
    )


def test_the_place_in_the_stack_is_this_line():
    found = standing(3, 1, "testing")
    assert found.frame.startswith("llmscale/distributed/hang.py:")
    assert not found.waits


LONELY = """
import sys, time
from llmscale.distributed.hang import HangWatch, standing
progress, limit = [0], float(sys.argv[1])
def end(text, late, first):
    print(text, flush=True)
    import os
    os._exit(76)
log = open(sys.argv[2], "w")
with HangWatch(0, None, ["here"], progress=lambda: progress[0], limit=lambda longest: limit,
               where=lambda: standing(4, 0, "reading"), log=log, end=end):
    print("begins", flush=True)
    for _ in range(int(sys.argv[3])):
        time.sleep(0.1)
        progress[0] += 1
    if sys.argv[4] == "hangs":
        time.sleep(60)
print("well", flush=True)
"""


def lonely(log: Path, limit: float, beats: int, end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LONELY, str(limit), str(log), str(beats), end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_process_that_stands_still_is_ended_with_its_stacks_in_the_log(tmp_path):
    process = lonely(tmp_path / "log", 1.0, 3, "hangs")
    started = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 76
    assert time.monotonic() - started < 30
    assert "rank 0 on here" in out or "no rank lags" in out
    log = (tmp_path / "log").read_text()
    assert "no progress for" in log
    assert "in reading of step 4" in log
    assert 'File "<string>", line ' in log, "the line that sleeps"


def test_progress_however_slow_is_no_hang(tmp_path):
    out, _ = lonely(tmp_path / "log", 1.0, 30, "ends").communicate(timeout=60)
    assert out.split() == ["begins", "well"]


def test_a_process_that_was_stopped_for_a_while_and_goes_on_is_not_ended(tmp_path):
    """As by Ctrl-Z and `fg`: the time in which it was stopped is not held against it."""
    process = lonely(tmp_path / "log", 2.0, 20, "ends")
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.split()) == (0, ["well"])
