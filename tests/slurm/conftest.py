"""A real Slurm of two emulated nodes, started once for the tests of this folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


class Cluster:
    """Slurm's commands, in a project folder of their own that has slurm/train.sbatch and slurm/cluster.env."""

    def __init__(self, configuration: Path, project: Path) -> None:
        self.root = configuration.parent
        self.project = project
        python = Path(sys.executable).parent
        slurm = {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))}
        ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        kept = {name: value for name, value in os.environ.items() if name not in slurm | ranks}
        self.environment = kept | {"SLURM_CONF": str(configuration), "PYTHONPATH": str(ROOT)}
        (project / "slurm").mkdir()
        shutil.copy(ROOT / "slurm/train.sbatch", project / "slurm")
        settings = f"export PATH={python}:$PATH SBATCH_PARTITION=main\n"
        (project / "slurm/cluster.env").write_text(settings)

    def run(self, *command: object) -> str:
        """Stdout of a command in the project folder."""
        words = [str(word) for word in command]
        result = subprocess.run(
            words, cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert result.returncode == 0, f"{words} exited with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result.stdout

    def submit(self, *arguments: object, options: tuple[str, ...] = ()) -> str:
        """A job of two nodes with two ranks each, submitted by hand; its number."""
        layout = ("--nodes=2", "--ntasks-per-node=2")
        return self.run("sbatch", "--parsable", *layout, *options, "slurm/train.sbatch", *arguments).strip()

    def launch(self, *arguments: object) -> str:
        """A job submitted by `llmscale launch slurm`; its number."""
        return self.run(sys.executable, "-m", "llmscale", "launch", "slurm", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` knows of it."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, number: str, seconds: float = 240) -> dict[str, str]:
        """The job's record once it has ended for good."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait_until(lambda: self.job(number)["JobState"] in ended, number, seconds)
        return self.job(number)

    def wait_until(self, condition: Callable[[], object], number: str, seconds: float = 120) -> None:
        """Wait for a condition; on a timeout the job's record and log tell why."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s\n{self.job(number)}\n{self.log(number)}"
            time.sleep(0.3)

    @contextlib.contextmanager
    def without_power(self, node: str) -> Iterator[None]:
        """A node is dead within the block, everything that ran on it included, and comes back after it."""
        subprocess.run([SCRIPT, "cut", self.root, node], check=True, timeout=30)
        try:
            yield
        finally:
            subprocess.run([SCRIPT, "boot", self.root, node], check=True, timeout=30)
            self.wait_for_nodes()

    def on_node(self, node: str, *command: object) -> str:
        """Stdout of a command that runs in the node's namespaces."""
        parent = (self.root / f"run/{node}.namespace").read_text().strip()
        first = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True, check=True).stdout.split()[0]
        enter = ["nsenter", "-t", first, "--mount", "--pid"]
        done = subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def covered(self, node: str, path: Path, by: Path | None = None, size: str = "16m") -> Iterator[None]:
        """Within the block, a node sees something else at `path`: what is at `by`, or an empty disk of that size."""
        source = ("--bind", by) if by else ("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
        self.on_node(node, "mount", *source, path)
        try:
            yield
        finally:
            self.on_node(node, "umount", "--lazy", path)

    def wait_for_nodes(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while set(self.run("sinfo", "--noheader", "--Node", "--format=%T").split()) & {"down", "down*", "unknown"}:
            assert time.monotonic() < end, self.run("sinfo", "--Node", "--long")
            time.sleep(0.5)

    def log(self, number: str) -> str:
        path = self.project / f"slurm-{number}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def slurm_configuration() -> Iterator[Path]:
    """Path of the running cluster's slurm.conf."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: needs Debian's slurmctld, slurmd, slurm-client and munge")
    namespaces = subprocess.run(
        ["unshare", "--uts", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False
    )
    if namespaces.returncode:
        pytest.skip("emulated nodes need leave to make namespaces (root, or CAP_SYS_ADMIN in a container)")
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        subprocess.run([SCRIPT, "up", root, str(three_free_ports())], check=True, timeout=60)
        yield root / "slurm.conf"
    finally:
        subprocess.run([SCRIPT, "down", root], check=False, timeout=60)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def cluster(slurm_configuration: Path, tmp_path: Path) -> Iterator[Cluster]:
    """The cluster, free of jobs, with a new project folder."""
    cluster = Cluster(slurm_configuration, tmp_path)
    yield cluster
    jobs = cluster.run("squeue", "--noheader", "--format=%A").split()
    for job in jobs:
        cluster.run("scancel", job)
        cluster.wait_for_end(job, 60)


def three_free_ports() -> int:
    """The first of three neighbouring free ports."""
    for first in range(18000, 19000, 3):
        probes = [socket.socket() for _ in range(3)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise RuntimeError("no free ports")


def ranks_of(job: str) -> dict[int, int]:
    """Process ids of a job's training ranks, as this machine sees them, by rank."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            variables = dict(
                entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if "=" in entry
            )
            command = (process / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        in_step = variables.get("SLURM_JOB_ID") == job and "SLURM_STEP_NUM_TASKS" in variables
        if in_step and "llmscale" in command and Path(command[0]).name.startswith("python"):
            found[int(variables["SLURM_PROCID"])] = int(process.name)
    return found


def kill_rank(job: str, rank: int) -> None:
    """What the kernel does when a rank is out of memory."""
    os.kill(ranks_of(job)[rank], signal.SIGKILL)
