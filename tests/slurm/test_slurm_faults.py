"""What is wrong with one node or one variable, on a real Slurm: one message with node and cause, and no hang."""

import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.slurm.conftest import ROOT, Cluster
from tests.tiny_run import write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MOST_SECONDS = 90
LISTENER = "import socket; taken = socket.create_server(('', 0)); print(taken.getsockname()[1], flush=True); input()"
CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() + 100\n"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def settings(cluster: Cluster, line: str) -> None:
    with (cluster.project / "slurm/cluster.env").open("a") as file:
        file.write(line + "\n")


class Fault(NamedTuple):
    cause: str
    covered: Path
    """What n2 has not, or otherwise."""
    by: Path | None = None
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


def unknown_address(cluster: Cluster) -> Fault:
    (cluster.project / "hosts").write_text("127.0.0.1 localhost n2\n")
    return Fault("it does not know the address of n1: ", Path("/etc/hosts"), cluster.project / "hosts")


def unshared_folder(cluster: Cluster) -> Fault:
    folder = cluster.project / "shared"
    folder.mkdir()
    cause = f"it does not see the run folder {folder}/run that the first node writes to"
    return Fault(cause, folder, overrides=("run.directory=shared/run",))


def missing_interpreter(cluster: Cluster) -> Fault:
    python = cluster.project / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    packages = sysconfig.get_paths()["purelib"]
    settings(cluster, f"export LLMSCALE_PYTHON={python} PYTHONPATH={ROOT}:{packages}")
    return Fault(f"there is no {python}; name in slurm/cluster.env an environment that every node has", python.parent)


def wrong_clock(cluster: Cluster) -> Fault:
    site, there = cluster.project / "site", cluster.project / "there"
    program(site / "sitecustomize.py", "")
    program(there / "sitecustomize.py", CLOCK)
    settings(cluster, f"export PYTHONPATH={site}:$PYTHONPATH")
    return Fault("its clock is 100 s off that of n1", site, there)


def lost_gpu(cluster: Cluster) -> Fault:
    """Slurm's two GPUs of a node are none; nvidia-smi is one that lists what a node has."""
    here, there = cluster.project / "bin", cluster.project / "there"
    listing = "#!/bin/sh\necho '0, GPU-a, 4, 80000'\n"
    program(here / "nvidia-smi", listing + "echo '1, GPU-b, 4, 80000'\n")
    program(there / "nvidia-smi", listing)
    settings(cluster, f"export PATH={here}:$PATH")
    cause = "its nvidia-smi lists 1 GPUs, but the job has 2 there"
    return Fault(cause, here, there, options=("--gpus-per-node=2",), overrides=("run.device=auto",))


@pytest.fixture
def config(cluster: Cluster) -> str:
    return write_tiny_run(cluster.project).name


def end(cluster: Cluster, *arguments: object, options: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """A job's exit code, and what its log says beside Slurm's own lines and the first, which introduces the job."""
    started = time.monotonic()
    job = cluster.submit(*arguments, options=options)
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert time.monotonic() - started < MOST_SECONDS, log
    lines = [line for line in log.splitlines() if not line.startswith(("srun:", "slurmstepd"))]
    assert lines[0].startswith(f"llmscale: job {job} (requeued 0 times) starts "), log
    return record["ExitCode"], lines[1:]


@pytest.mark.parametrize("plant", [unknown_address, unshared_folder, missing_interpreter, wrong_clock, lost_gpu])
def test_a_node_that_is_not_fit_is_named_with_the_cause(
    cluster: Cluster, config: str, plant: Callable[[Cluster], Fault]
) -> None:
    """Where no other node is left, the job ends and does not wait in the queue for one."""
    fault = plant(cluster)
    with cluster.covered("n2", fault.covered, fault.by):
        code, lines = end(cluster, config, *fault.overrides, options=fault.options)
    assert code == "1:0", lines
    sick, ends = lines
    assert sick.startswith(f"llmscale: node n2 is not fit: {fault.cause}")
    assert ";" not in sick.removeprefix(f"llmscale: node n2 is not fit: {fault.cause}"), "nothing else is wrong with it"
    assert "needs 2 nodes, but partition main has 1 without n2, so it ends here" in ends


def test_an_address_that_is_not_the_first_nodes_is_one_mistake(cluster: Cluster, config: str) -> None:
    settings(cluster, "export MASTER_ADDR=192.0.2.1")  # for documentation: no machine's
    code, lines = end(cluster, config)
    assert code == "2:0"
    [said] = lines
    assert said.startswith("llmscale: MASTER_ADDR is 192.0.2.1, which is not n1, where rank 0 will be;")


def test_a_port_in_use_is_one_mistake(cluster: Cluster, config: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        port = listener.stdout.readline().strip()
        settings(cluster, f"export MASTER_PORT={port}")
        try:
            code, lines = end(cluster, config)
        finally:
            listener.kill()
    assert code == "2:0"
    [said] = lines
    assert said.startswith(f"llmscale: MASTER_PORT is {port}, on which n1 cannot listen (Address already in use);")


def test_a_file_that_one_node_has_not_is_told_once(cluster: Cluster, config: str) -> None:
    data = cluster.project / "data"
    data.mkdir()
    for path in cluster.project.glob("text-*.txt"):
        path.rename(data / path.name)
    with cluster.covered("n2", data):
        code, lines = end(cluster, config, "data.sources=[{paths: [data/text-*.txt], document: line}]")
    assert code == "2:0"
    [said] = lines
    assert "on n2: data.sources[0].paths: data/text-0.txt" in said
    assert "is on rank 0's machine but not on this one" in said


def test_a_variable_that_is_not_set_is_told_by_one_task_of_each_node(cluster: Cluster, config: str) -> None:
    for name in ("SLURM_NODEID", "SLURM_STEP_NUM_TASKS"):
        task = ["env", "-u", name, sys.executable, "-m", "llmscale", "train", config]
        done = subprocess.run(
            ["srun", "--nodes=2", "--ntasks-per-node=2", *task],
            cwd=cluster.project,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
        )
        said = sorted(line for line in done.stderr.splitlines() if line.startswith("llmscale:"))
        assert done.returncode == 2
        assert [line.partition(";")[0] for line in said] == [
            f"llmscale: this looks like a Slurm task, on {node}, but {name} is not set" for node in ("n1", "n2")
        ]
