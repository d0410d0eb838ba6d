"""Real training under a real Slurm: 2 nodes x 2 ranks."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from data_pipeline.base.records import read_records
from tests.slurm.conftest import kill_rank, ranks_of
from tests.tiny_run import losses, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def config(cluster):
    """Its relative paths hold on every node: jobs run in the project folder."""
    return write_tiny_run(cluster.project).name


def outcome(cluster, run: str) -> str:
    return json.loads((cluster.project / run / "outcome.json").read_text())["outcome"]


def assert_same_start(ours: dict[int, float], expected: dict[int, float]) -> None:
    """Across layouts fp32 agrees to 1e-5 for 5 steps; after that rounding grows (invariant 1 of the design)."""
    for step in range(1, 6):
        assert ours[step] == pytest.approx(expected[step], rel=1e-5)


def train_alone(cluster, config: str, run: str, *overrides: str) -> None:
    cluster.run(sys.executable, "-m", "llmscale", "train", config, f"run.directory={run}", *overrides)


def test_the_losses_are_those_of_one_process(cluster, config):
    train_alone(cluster, config, "alone")
    job = cluster.launch("--nodes", 2, "--ntasks-per-node", 2, config)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Partition"]) == ("COMPLETED", "main"), cluster.log(job)
    assert outcome(cluster, "run") == "done"
    ours, expected = losses(cluster.project / "run"), losses(cluster.project / "alone")
    assert list(ours) == list(range(1, 7))
    assert_same_start(ours, expected)
    assert (cluster.project / "run/logs/rank-00003.log").exists()
    log = cluster.log(job)
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d n1  step 6/6  ", log, re.MULTILINE), log


def test_half_the_ranks_go_on_with_what_four_began(cluster, config):
    constant = ("schedule.name=constant", "schedule.warmup_steps=0")
    train_alone(cluster, config, "alone", "train.steps=5", *constant)
    first = cluster.launch("--nodes", 2, "--ntasks-per-node", 2, config, "train.steps=2", *constant)
    assert cluster.wait_for_end(first)["JobState"] == "COMPLETED", cluster.log(first)
    job = cluster.launch("--resume", "run", "--nodes", 1, "--ntasks-per-node", 2, "train.steps=5")
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["NumNodes"]) == ("COMPLETED", "1"), cluster.log(job)
    ours, expected = losses(cluster.project / "run"), losses(cluster.project / "alone")
    assert list(ours) == list(range(1, 6))
    assert_same_start(ours, expected)


def test_a_job_whose_tasks_were_changed_in_the_queue_goes_on_with_as_many(cluster, config):
    constant = ("schedule.name=constant", "schedule.warmup_steps=0", "checkpoint.interval=2", "train.steps=150")
    job = cluster.submit(config, *constant)
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    cluster.run("scontrol", "requeuehold", job)
    cluster.wait_until(lambda: "held" in cluster.job(job)["Reason"], job)
    cluster.run("scontrol", "update", f"JobId={job}", "NumTasks=2", "NumCPUs=2", "NumNodes=1")
    cluster.run("scontrol", "release", job)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"], record["NumNodes"]) == ("COMPLETED", "1", "1"), cluster.log(job)
    assert "2 rank(s) on 1 node(s), since the job was submitted with 4 and changed" in cluster.log(job)
    assert "srun: warning" not in cluster.log(job)
    assert list(losses(cluster.project / "run")) == list(range(1, 151))


def test_a_preempted_job_saves_requeues_itself_and_ends_as_if_never_interrupted(cluster, config):
    steps = 150
    train_alone(cluster, config, "alone", f"train.steps={steps}")
    job = cluster.submit(config, f"train.steps={steps}")
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    cluster.run("scancel", "--signal=USR1", job)
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    ours, expected = losses(cluster.project / "run"), losses(cluster.project / "alone")
    assert list(ours) == list(range(1, steps + 1))
    attempts = {row["attempt"] for row in read_records(cluster.project / "run/metrics.jsonl")}
    assert attempts == {1, 2}
    assert_same_start(ours, expected)
    assert ours[steps] == pytest.approx(expected[steps], rel=1e-2)


def test_the_time_limit_is_announced_to_every_rank(cluster, config):
    """Slurm checks limits about every 30 s: the signal comes 60 to 120 s before the end of the 3 minutes, which leaves
    the first start a minute at least for a step."""
    job = cluster.submit(config, "train.steps=1000000", options=("--time=3", "--signal=USR1@60"))
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", job, 240)
    assert outcome(cluster, "run") in ("preempted", "running")  # running when it has started again already
    assert "DUE TO TIME LIMIT" not in cluster.log(job)
    assert (cluster.project / "run/checkpoints/latest").exists()


def test_a_cancelled_job_saves_and_does_not_come_back(cluster, config):
    job = cluster.submit(config, "train.steps=1000000")
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    cluster.run("scancel", job)
    record = cluster.wait_for_end(job)
    cluster.wait_until(lambda: not ranks_of(job), job)
    assert (record["JobState"], record["Restarts"]) == ("CANCELLED", "0")
    assert outcome(cluster, "run") == "preempted"
    assert (cluster.project / "run/checkpoints/latest").exists()


def test_a_killed_rank_ends_the_job_and_does_not_requeue_it(cluster, config):
    job = cluster.submit(config, "train.steps=1000000")
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    kill_rank(job, 3)
    record = cluster.wait_for_end(job, 60)
    assert (record["JobState"], record["Restarts"]) == ("FAILED", "0")
    cluster.wait_until(lambda: not ranks_of(job), job, 20)


def test_a_job_on_a_node_that_dies_is_requeued_and_continues(cluster, config):
    overrides = ["train.steps=500", "checkpoint.interval=20"]
    job = cluster.submit(config, *overrides)
    cluster.wait_until((cluster.project / "run/checkpoints/latest").exists, job)
    with cluster.without_power("n2"):
        cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", job, 120)
    record = cluster.wait_for_end(job)
    assert record["JobState"] == "COMPLETED", cluster.log(job)
    rows = read_records(cluster.project / "run/metrics.jsonl")
    assert max(row["attempt"] for row in rows) >= 2
    assert sum(row["attempt"] == 1 for row in rows) >= 20, "continued, not begun anew"
    assert list(losses(cluster.project / "run")) == list(range(1, 501))


def test_a_rank_that_hangs_after_another_was_killed_is_ended(cluster, config):
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + "export SLURM_WAIT=10\n")
    job = cluster.submit(config, "train.steps=1000000")
    cluster.wait_until(lambda: len(losses(cluster.project / "run")) >= 5, job)
    stopped = ranks_of(job)[1]
    os.kill(stopped, signal.SIGSTOP)
    kill_rank(job, 3)
    record = cluster.wait_for_end(job, 60)
    assert (record["JobState"], record["Restarts"]) == ("FAILED", "0")
    assert not Path(f"/proc/{stopped}").exists()


def test_a_mistake_in_the_config_is_told_once_and_no_rank_starts(cluster, config):
    job = cluster.submit(config, "train.stepz=3")
    record = cluster.wait_for_end(job)
    assert (record["JobState"], record["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.log(job).count("\n") == 1
    assert "train.stepz" in cluster.log(job)
    assert not (cluster.project / "run").exists()


def test_a_batch_that_the_ranks_do_not_divide_is_refused_before_any_rank_starts(cluster, config):
    job = cluster.submit(config, "train.global_batch=6")
    assert cluster.wait_for_end(job)["ExitCode"] == "2:0"
    assert "train.global_batch (6) must be a multiple of the data-parallel size (4)" in cluster.log(job)
    assert not (cluster.project / "run").exists()


def test_data_that_is_missing_is_told_once_with_exit_code_2(cluster, config):
    """All ranks meet this one, each at its own moment; none may be cut off before rank 0 has spoken."""
    for file in Path(cluster.project).glob("text-*.txt"):
        file.unlink()
    job = cluster.submit(config)
    assert cluster.wait_for_end(job)["ExitCode"] == "2:0", cluster.log(job)
    assert cluster.log(job).count("text-*.txt") == 1
    assert "Traceback" not in cluster.log(job)
