"""A node that is not fit, on a real Slurm: named before the ranks start, and the job runs elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster
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
