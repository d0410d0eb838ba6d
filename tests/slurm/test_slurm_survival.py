"""Jobs on a real Slurm that outlive what happens to them: code that changes, ranks that die, no requeueing."""

import json
import time

import pytest

from data_pipeline.base.records import read_every_record
from tests.slurm.conftest import kill_rank
from tests.tiny_run import losses, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LAYOUT = ("--nodes", 2, "--ntasks-per-node", 1)


@pytest.fixture
def config(cluster):
    return write_tiny_run(cluster.project).name


def outcome(cluster):
    return json.loads((cluster.project / "run/outcome.json").read_text())


def test_a_requeued_job_runs_the_code_and_config_of_its_submission(cluster, config):
    """Config and code of the working directory are spoilt once the job runs; the wait in the queue is on record."""
    job = cluster.launch(*LAYOUT, config, "train.steps=120")
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    (cluster.project / config).write_text("no config any more")
    (cluster.project / "llmscale").mkdir()
    (cluster.project / "llmscale/__init__.py").write_text("raise SystemExit('the wrong code')")
    cluster.run("scancel", "--signal=USR1", job)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    assert list(losses(cluster.project / "run")) == list(range(1, 121))
    assert f"llmscale: job {job} (requeued 1 times) continues run from step" in cluster.log(job)
    first = next(row for row in read_every_record(cluster.project / "run/time.jsonl") if "began" in row)
    assert first["job"] == job
    assert 0 < first["began"] - first["before"] < 300, "from the submission to the start of the rank"


def test_a_killed_rank_is_followed_by_a_restart_within_the_job(cluster, config):
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + "export SLURM_WAIT=10\n")
    job = cluster.launch(*LAYOUT, "--restarts", 2, config, "train.steps=150", "checkpoint.interval=5")
    cluster.wait_until((cluster.project / "run/checkpoints/latest").exists, job)
    kill_rank(job, 1)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "0"), cluster.log(job)
    assert cluster.log(job).count("restart 1 of 2, from the checkpoint of step") == 1
    assert outcome(cluster)["attempt"] == 2
    assert list(losses(cluster.project / "run")) == list(range(1, 151))


def test_a_chain_continues_without_requeueing_and_ends_with_the_run(cluster, config):
    jobs = cluster.launch(*LAYOUT, "--chain", 3, config, "train.steps=120").split()
    assert len(jobs) == 3
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, jobs[0])
    cluster.run("scancel", "--signal=USR1", jobs[0])
    first, second = (cluster.wait_for_end(job) for job in jobs[:2])
    assert (first["JobState"], first["ExitCode"], first["Restarts"]) == ("FAILED", "75:0", "0"), cluster.log(jobs[0])
    assert second["JobState"] == "COMPLETED", cluster.log(jobs[1])
    assert outcome(cluster)["outcome"] == "done"
    end = time.monotonic() + 60
    while jobs[2] in cluster.run("squeue", "--noheader", "--format=%A").split():
        assert time.monotonic() < end, "the rest of the chain goes away once the run is done"
        time.sleep(1)
    assert not cluster.log(jobs[2])
