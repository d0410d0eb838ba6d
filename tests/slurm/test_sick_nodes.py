"""A node that is not fit, on a real Slurm: named before the ranks start, and the job runs elsewhere."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster
from tests.slurm.test_slurm_faults import MOST_SECONDS, program, settings
from tests.tiny_run import losses, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[Path]:
    """The run folder, on whose disk n2 alone has but a megabyte."""
    run = cluster.project / "run"
    run.mkdir()
    with cluster.covered("n2", run, size="1m"):
        yield run


def test_a_full_disk_on_one_node_sends_the_job_to_another(cluster: Cluster, small_disk: Path) -> None:
    config = write_tiny_run(cluster.project).name
    busy = cluster.run("sbatch", "--parsable", "--nodelist=n1", "--exclusive", "--wrap", "sleep 600").strip()
    cluster.wait_until(lambda: cluster.job(busy)["JobState"] == "RUNNING", busy)
    job = cluster.run("sbatch", "--parsable", "--nodes=1", "--ntasks=2", "slurm/train.sbatch", config).strip()
    cluster.wait_until(lambda: "goes back into the queue without n2" in cluster.log(job), job)
    assert "llmscale: node n2 is not fit: the disk of" in cluster.log(job)
    cluster.run("scancel", busy)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"], record["NodeList"]) == ("COMPLETED", "1", "n1"), cluster.log(job)
    assert record["ExcNodeList"] == "n2"
    assert list(losses(small_disk)) == list(range(1, 7))
    assert "Traceback" not in cluster.log(job)


@pytest.fixture
def partitions(cluster: Cluster) -> Iterator[None]:
    """Two besides main that have n2 alone, and come first."""
    for name in ("one", "two"):
        cluster.run("scontrol", "create", f"PartitionName={name}", "Nodes=n2", "PriorityTier=9")
    yield
    for job in cluster.run("squeue", "--noheader", "--format=%A").split():
        cluster.run("scancel", job)
        cluster.wait_for_end(job)
    for name in ("one", "two"):
        cluster.run("scontrol", "delete", f"PartitionName={name}")


def submit(cluster: Cluster, *options: str, exclusions: int = 2) -> str:
    config, overrides = write_tiny_run(cluster.project).name, f"recovery.node_exclusions={exclusions}"
    words = ("--parsable", "--ntasks-per-node=1", *options, "slurm/train.sbatch", config, "train.steps=1", overrides)
    return cluster.run("sbatch", *words).strip()


@pytest.mark.usefixtures("small_disk", "partitions")
def test_a_job_goes_on_in_another_partition_that_it_asked_for(cluster: Cluster) -> None:
    job = submit(cluster, "--partition=one,main", "--nodes=1")
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    assert (record["Partition"], record["NodeList"], record["ExcNodeList"]) == ("main", "n1", "n2")


@pytest.mark.usefixtures("small_disk", "partitions")
@pytest.mark.parametrize(
    ("asked", "nodes", "state", "told"),
    [
        ("one", 1, "CANCELLED", "needs 1 nodes, but partition one has 0 without n2, so it is cancelled"),
        (
            "one,two",
            1,
            "CANCELLED",
            "needs 1 nodes, but partition one has 0 and partition two has 0 without n2, so it is cancelled",
        ),
        (
            "main,one",
            2,
            "FAILED",
            "needs 2 nodes, but partition main has 1 without n2 and no other one has enough, so it ends here",
        ),
    ],
    ids=["one", "several", "all"],
)
def test_a_job_ends_where_no_partition_that_it_asked_for_has_nodes_enough(
    cluster: Cluster, asked: str, nodes: int, state: str, told: str
) -> None:
    started = time.monotonic()
    job = submit(cluster, f"--partition={asked}", f"--nodes={nodes}")
    record = cluster.wait_for_end(job)
    assert time.monotonic() - started < MOST_SECONDS
    assert record["JobState"] == state, cluster.log(job)
    assert cluster.log(job).count(told) == 1, cluster.log(job)


@pytest.mark.usefixtures("small_disk", "partitions")
@pytest.mark.parametrize("always", [False, True])
def test_a_job_that_slurm_kills_before_it_has_asked_decides_at_its_next_start(cluster: Cluster, always: bool) -> None:
    """Slurm ends the batch script of a job that is requeued after its KillWait; here scontrol takes longer."""
    hangs = "true" if always else '[ -z "$SLURM_RESTART_COUNT" ]'
    slow = f'[ "$1" = requeue ] && touch requeued; [ "$1" != requeue ] && [ -e requeued ] && {hangs} && sleep 60'
    program(cluster.project / "bin/scontrol", f'#!/bin/sh\n{slow}\nexec {shutil.which("scontrol")} "$@"\n')
    settings(cluster, f"rm -f requeued; export PATH={cluster.project}/bin:$PATH")
    started = time.monotonic()
    job = submit(cluster, "--partition=one,main", "--nodes=1", exclusions=1 if always else 2)
    record = cluster.wait_for_end(job)
    assert cluster.log(job).count("llmscale: node n2 is not fit: the disk of") == 2, cluster.log(job)
    if always:
        assert time.monotonic() - started < MOST_SECONDS
        assert (record["JobState"], record["Restarts"]) == ("FAILED", "1")
        assert cluster.log(job).count("has gone back 1 times without a sick node") == 1
    else:
        assert (record["JobState"], record["NodeList"], record["Restarts"]) == ("COMPLETED", "n1", "2")
        assert cluster.log(job).count("goes back into the queue without n2") == 1


def test_a_job_ends_where_too_many_nodes_are_sick(cluster: Cluster, small_disk: Path) -> None:
    """The settings bound how often it goes back; the message says what to do."""
    config = write_tiny_run(cluster.project).name
    logs = small_disk / "logs"
    cluster.on_node("n2", "mkdir", logs)
    options = ("--nodes=1", "--ntasks=1", "--nodelist=n2", "--hold")
    job = cluster.run("sbatch", "--parsable", *options, "slurm/train.sbatch", config).strip()
    record = json.dumps({"job": job, "times": 2, "nodes": {"n1": "it gave no answer"}})
    cluster.on_node("n2", "bash", "-c", f"echo '{record}' > '{logs}/sick_nodes.json'")
    cluster.run("scontrol", "release", job)
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0"), cluster.log(job)
    assert "has gone back 2 times without a sick node" in cluster.log(job)
