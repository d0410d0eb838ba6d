"""Ranks that no step would let go, and ranks that cannot be."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, Finished

RANK_1 = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}


def complaint(done: Finished, code: int = 2) -> str:
    """The last line on stderr of a command that ended with `code`."""
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_rank_that_waits_for_others_ends_at_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    port = free_port()
    write_tiny_run(tmp_path)
    waiting = Command("train", "config.yaml", "run.directory=waits", cwd=tmp_path, **RANK_1, MASTER_PORT=port)
    # It is in the rendezvous when it connects to rank 0, which does not answer.
    with socket.create_server(("127.0.0.1", port)) as lead:
        lead.settimeout(60)
        with lead.accept()[0]:
            time.sleep(0.3)
            os.kill(waiting.process.pid, number)
            ended = waiting.finish(timeout=10)
    sentence = complaint(ended, code)
    assert f"rank 1: ended by {number.name} before the first step" in sentence


def test_a_signal_that_comes_again_ends_a_step_that_never_does(tmp_path: Path) -> None:
    """Rank 0 is stopped, so that rank 1 stays in a collective."""
    write_tiny_run(tmp_path)
    settings = ("run.directory=stuck", "train.steps=1000000")
    port = free_port()
    both = [
        Command("train", "config.yaml", *settings, cwd=tmp_path, **{**RANK_1, "RANK": rank}, MASTER_PORT=port)
        for rank in range(2)
    ]
    path = tmp_path / "stuck" / "ledger.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") > 3):
        assert both[0].process.is_alive()
        time.sleep(0.01)
    pids = [command.process.pid for command in both]
    os.kill(pids[0], signal.SIGSTOP)
    try:
        time.sleep(0.2)
        for _ in range(3):  # a scheduler's, and a launcher's that passes it on
            os.kill(pids[1], signal.SIGTERM)
            time.sleep(0.1)
        time.sleep(1)
        assert both[1].process.is_alive()
        os.kill(pids[1], signal.SIGTERM)
        assert "ended by SIGTERM a second time" in complaint(both[1].finish(timeout=10), 75)
    finally:
        os.kill(pids[0], signal.SIGKILL)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": 2}, "RANK is 2, but WORLD_SIZE is 2, and ranks count from 0; start"),
        ({"RANK": "x"}, "RANK is 'x', but must be a whole number; start"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', but must be a whole number; start"),
        ({"LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 2}, "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2, and ranks"),
    ],
)
def test_ranks_that_cannot_be(tmp_path: Path, variables: dict[str, object], says: str) -> None:
    write_tiny_run(tmp_path)
    done = Command("train", "config.yaml", cwd=tmp_path, **RANK_1 | {"MASTER_PORT": free_port()} | variables)
    assert says in complaint(done.finish(timeout=20))
