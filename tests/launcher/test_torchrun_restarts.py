"""torchrun starts ranks again: with both kinds of rendezvous, on one node and on two."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.bombs import KILL, ROOT, plant
from tests.tiny_run import losses, write_tiny_run

pytestmark = pytest.mark.slow

SETTINGS = ("config.yaml", "train.steps=30", "checkpoint.interval=8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(folder: Path, *options: str) -> subprocess.Popen[str]:
    """An agent of one rank each, in a session of its own, which is killed as a whole where it hangs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=2", *options]
    path = f"{folder / 'site'}{os.pathsep}{ROOT}"
    return subprocess.Popen(
        [*command, "-m", "llmscale", "train", *SETTINGS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("rendezvous", ["static", "c10d", "one-node"])
def test_a_killed_rank_is_started_again_and_the_run_continues(tmp_path, rendezvous):
    """With c10d and two nodes, the agent of the killed rank counts a restart, and the other one does not."""
    write_tiny_run(tmp_path)
    plant(tmp_path, 1, KILL, [15])
    port = free_port()
    both = {
        "static": [
            (
                "--nnodes=2",
                "--nproc-per-node=1",
                f"--node-rank={node}",
                "--master-addr=127.0.0.1",
                f"--master-port={port}",
            )
            for node in range(2)
        ],
        "c10d": 2 * [("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}")],
        "one-node": [("--standalone", "--nproc-per-node=2")],
    }
    agents = [torchrun(tmp_path, *options) for options in both[rendezvous]]
    try:
        output = "".join(agent.communicate(timeout=180)[0] for agent in agents)
    finally:
        for agent in agents:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())
    assert (outcome["outcome"], outcome["attempt"]) == ("done", 2), output
    assert list(losses(tmp_path / "run")) == list(range(1, 31))
    assert [agent.returncode for agent in agents] == [0] * len(agents), output
