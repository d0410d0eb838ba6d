"""Real ranks started by the local launcher."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAND_IN = Path(__file__).with_name("stand_in_rank.py")
DRIVER = """
import sys
from pathlib import Path
from launcher.local import run_ranks
behaviour, folder, nproc, grace, save = sys.argv[1:]
command = [sys.executable, {stand_in!r}, behaviour, folder]
sys.exit(run_ranks(command, int(nproc), Path(folder) / "logs", float(grace), float(save)))
"""


def start(
    folder: Path, behaviour: str, nproc: int, grace: float = 1.0, save: float = 60.0, **options
) -> subprocess.Popen:
    arguments = [
        sys.executable,
        "-c",
        DRIVER.format(stand_in=str(STAND_IN)),
        behaviour,
        str(folder),
        str(nproc),
        str(grace),
        str(save),
    ]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(arguments, **streams)


def run(folder: Path, behaviour: str, nproc: int, grace: float = 1.0) -> tuple[int, str, str]:
    process = start(folder, behaviour, nproc, grace)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for_ranks(folder: Path, nproc: int) -> list[dict]:
    files = [folder / f"rank-{rank}.json" for rank in range(nproc)]
    wait_until(lambda: all(file.exists() for file in files))
    return [json.loads(file.read_text()) for file in files]


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_ranks_meet_and_more_ranks_than_cores_work(tmp_path):
    nproc = len(os.sched_getaffinity(0)) + 1
    code, out, err = run(tmp_path, "sum", nproc)
    assert (code, out) == (0, "rank 0 speaks\n"), err
    expected = str(float(sum(range(1, nproc + 1))))
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(nproc)] == [expected] * nproc


def test_each_rank_gets_torchruns_variables_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(tmp_path, "ok", 2)[0] == 0
    environments = [rank["environment"] for rank in wait_for_ranks(tmp_path, 2)]
    for rank, environment in enumerate(environments):
        assert [environment[name] for name in ("RANK", "LOCAL_RANK")] == [str(rank)] * 2
        assert [environment[name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["2", "2"]
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert int(environment["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert environments[0]["MASTER_PORT"] == environments[1]["MASTER_PORT"]


def test_threads_set_by_the_user_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run(tmp_path, "ok", 2)[0] == 0
    assert {rank["environment"]["OMP_NUM_THREADS"] for rank in wait_for_ranks(tmp_path, 2)} == {"7"}


def test_the_other_ranks_speak_into_their_logs_and_logs_grow_over_attempts(tmp_path):
    for attempt in (1, 2):
        assert run(tmp_path, "ok", 3)[:2] == (0, "rank 0 speaks\n")
        assert (tmp_path / "logs/rank-00001.log").read_text() == "rank 1 speaks\n" * attempt
        assert (tmp_path / "logs/rank-00002.log").read_text() == "rank 2 speaks\n" * attempt
    assert not (tmp_path / "logs/rank-00000.log").exists()


def test_a_terminal_stays_a_terminal_for_rank_0_only(tmp_path):
    ours, theirs = pty.openpty()
    try:
        assert start(tmp_path, "ok", 2, stdout=theirs, stderr=theirs).wait(timeout=30) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert [rank["terminal"] for rank in wait_for_ranks(tmp_path, 2)] == [True, False]


@pytest.mark.parametrize(
    ("behaviour", "nproc", "code", "sentence"),
    [
        ("exit-2", 2, 2, ""),
        ("exit-75", 2, 75, ""),
        (
            "exit-3-1",
            2,
            3,
            "rank 1 of 2 exited with code 3 and ended the run; its output is in {logs}/rank-00001.log\n",
        ),
        (
            "exit-2-1",
            3,
            2,
            "rank 1 of 3 exited with code 2 and ended the run; its output is in {logs}/rank-00001.log\n",
        ),
        ("exit-1-0", 2, 1, "rank 0 of 2 exited with code 1 and ended the run; its output stands above\n"),
        (
            "killed",
            2,
            1,
            "rank 1 of 2 was killed by signal 9 (SIGKILL: out of memory?) and ended the run;"
            " its output is in {logs}/rank-00001.log\n",
        ),
        ("mixed", 3, 1, "rank 2 of 3 exited with code 1 and ended the run; its output is in {logs}/rank-00002.log\n"),
    ],
)
def test_exit_code_and_the_sentence_that_names_the_rank(tmp_path, behaviour, nproc, code, sentence):
    assert run(tmp_path, behaviour, nproc)[::2] == (code, sentence.format(logs=tmp_path / "logs"))
    assert not any(alive(rank["pid"]) for rank in wait_for_ranks(tmp_path, nproc))


def test_ranks_that_end_within_the_grace_time_are_not_killed(tmp_path):
    """A failing rank must not cut off another one that is still writing its own message."""
    process = start(tmp_path, "save", 4, grace=20)
    wait_for_ranks(tmp_path, 4)
    process.terminate()
    assert process.wait(timeout=20) == 75
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preemption_signal_reaches_every_rank(tmp_path, number):
    process = start(tmp_path, "save", 3)
    wait_for_ranks(tmp_path, 3)
    process.send_signal(number)
    assert process.wait(timeout=20) == 75
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(3)] == [signal.Signals(number).name] * 3


def test_one_interrupt_ends_ranks_that_heed_it_and_a_second_one_all(tmp_path):
    process = start(tmp_path, "save", 2, grace=60)  # these ranks handle SIGTERM, and python's SIGINT ends them
    pids = [rank["pid"] for rank in wait_for_ranks(tmp_path, 2)]
    os.kill(pids[0], signal.SIGSTOP)  # a rank that does not heed it
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not alive(pids[1]))
    assert alive(pids[0])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert not alive(pids[0])


def test_a_stopped_rank_goes_on_and_saves_with_the_others(tmp_path):
    process = start(tmp_path, "save", 3)
    os.kill(wait_for_ranks(tmp_path, 3)[1]["pid"], signal.SIGSTOP)
    process.terminate()
    assert process.wait(timeout=20) == 75
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(3))


def test_ranks_that_do_not_heed_a_signal_are_killed_after_the_grace_for_saving(tmp_path):
    process = start(tmp_path, "deaf", 2, save=1)
    pids = [rank["pid"] for rank in wait_for_ranks(tmp_path, 2)]
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.startswith("rank 0 of 2 did not end within 1 s of SIGTERM and was killed")
    assert not any(alive(pid) for pid in pids)


def test_a_rank_that_is_killed_is_blamed_and_not_those_that_its_death_ends(tmp_path):
    """Rank 0 ends with code 1 before anybody looks at how rank 1 ended."""
    code, _, errors = run(tmp_path, "killed-first", 2)
    assert (code, errors.split(" and ended")[0]) == (1, "rank 1 of 2 was killed by signal 11 (SIGSEGV)")


def test_each_launch_has_a_secret_of_its_own_which_no_command_line_shows(tmp_path):
    secrets = set()
    for launch in range(2):
        folder = tmp_path / str(launch)
        folder.mkdir()
        process = start(folder, "save", 2)
        ranks = wait_for_ranks(folder, 2)
        (secret,) = {rank["environment"]["LLMSCALE_TOKEN"] for rank in ranks}
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (process.pid, *(rank["pid"] for rank in ranks))]
        process.terminate()
        assert process.wait(timeout=20) == 75
        process.communicate()
        assert len(secret) >= 32
        assert not any(secret in line for line in lines)
        secrets.add(secret)
    assert len(secrets) == 2


def test_no_rank_survives_the_launcher(tmp_path):
    process = start(tmp_path, "hang", 3)
    pids = [rank["pid"] for rank in wait_for_ranks(tmp_path, 3)]
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds=5)
    process.communicate()


def test_a_rank_that_cannot_start_leaves_no_other_behind(tmp_path):
    driver = (
        "from pathlib import Path\nimport launcher.local as local\n"
        f"real, command = local._variables, [{sys.executable!r}, {str(STAND_IN)!r}, 'hang', {str(tmp_path)!r}]\n"
        "def broken(rank, *others):\n"
        "    if rank == 1:\n        raise OSError('out of processes')\n    return real(rank, *others)\n"
        "local._variables = broken\n"
        f"local.run_ranks(command, 2, Path({str(tmp_path)!r}))\n"
    )
    result = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "out of processes" in result.stderr
    time.sleep(0.2)
    assert not any(alive(json.loads(file.read_text())["pid"]) for file in tmp_path.glob("rank-*.json"))
