"""What a job does around its ranks, under a real Slurm. A stand-in for srun starts, by the real srun, tasks that write
down what they were given instead of training."""

import json

import pytest

from tests.tiny_run import losses, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SRUN = """#!/bin/bash
options=()
while [ "${1:0:2}" = -- ]; do options+=("$1"); shift; done
exec /usr/bin/srun "${options[@]}" /bin/bash -c '
  /usr/bin/env -0 > task-$SLURM_PROCID.environment; printf "%s\\0" "$@" > task-$SLURM_PROCID.arguments' task "$@"
"""


@pytest.fixture
def config(cluster):
    return write_tiny_run(cluster.project).name


@pytest.fixture
def reported(cluster, config):
    """Submit by sbatch with tasks that only report; the environment of each task, by rank."""

    def submit(*options: str, arguments: tuple[str, ...] = (), environment: dict[str, str] | None = None):
        stand_in(cluster, SRUN)
        cluster.environment |= environment or {}
        job = cluster.run("sbatch", "--parsable", *options, "slurm/train.sbatch", config, *arguments).strip()
        assert cluster.wait_for_end(job, 60)["ExitCode"] == "0:0", cluster.log(job)
        found = sorted(cluster.project.glob("task-*.environment"))
        texts = [path.read_text().split("\0") for path in found]
        return [dict(entry.split("=", 1) for entry in text if "=" in entry) for text in texts]

    return submit


def stand_in(cluster, srun: str, check: str = ":") -> None:
    """A srun of the test's own, which the cluster's settings put before the real one; nodes are checked by that, after
    the command `check`."""
    first, rest = srun.split("\n", 1)
    srun = f'{first}\ncase "$*" in *launcher.node_check*) {check}; exec /usr/bin/srun "$@" ;; esac\n{rest}'
    folder = cluster.project / "bin"
    folder.mkdir()
    (folder / "srun").write_text(srun)
    (folder / "srun").chmod(0o755)
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + f"export PATH={folder}:$PATH\n")


def test_a_limit_not_above_the_signals_lead_ends_the_job_at_once(cluster, config):
    """It came back for ever: 22 times in 11 minutes, without a step."""
    options = ("--time=2", "--nodes=1", "--ntasks-per-node=1")
    job = cluster.run("sbatch", "--parsable", *options, "slurm/train.sbatch", config).strip()
    record = cluster.wait_for_end(job, 60)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "2:0", "0")
    assert "limit of 120 s (--time) is not above the 120 s" in cluster.log(job)
    assert not (cluster.project / "run").exists()


def test_three_ends_without_a_step_stop_the_job(cluster, config):
    stand_in(cluster, "#!/bin/bash\nexit 75\n")
    job = cluster.submit(config)
    record = cluster.wait_for_end(job, 120)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "1:0", "2"), cluster.log(job)
    assert "3 times in a row without a new step" in cluster.log(job)


def test_without_a_number_of_tasks_there_is_one_on_each_node(reported):
    tasks = reported("--nodes=2")
    assert [task["SLURMD_NODENAME"] for task in tasks] == ["n1", "n2"]
    assert {task["SLURM_STEP_NUM_TASKS"] for task in tasks} == {"2"}


def test_without_a_number_of_tasks_there_is_one_for_each_gpu(reported):
    tasks = reported("--nodes=2", "--gpus-per-node=2", "--mincpus=2", arguments=("run.device=auto",))
    assert [task["SLURMD_NODENAME"] for task in tasks] == ["n1", "n1", "n2", "n2"]
    assert {task["CUDA_VISIBLE_DEVICES"] for task in tasks} == {"0,1"}


def test_the_settings_are_not_run_under_set_u(cluster, reported):
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + "export LD_LIBRARY_PATH=/x:$NOT_SET_ANYWHERE\n")
    [task] = reported("--nodes=1", "--ntasks=1")
    assert task["LD_LIBRARY_PATH"] == "/x:"


def test_with_export_none_the_ranks_get_what_the_job_got(cluster, reported):
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + "export MINE=yes\n")
    tasks = reported("--nodes=2", "--ntasks-per-node=1", "--export=NONE")
    assert [task["MINE"] for task in tasks] == ["yes", "yes"]
    assert all("/bin" in task["PATH"] for task in tasks)


def test_another_launchs_variables_do_not_reach_the_ranks(reported):
    left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    tasks = reported("--nodes=2", "--ntasks-per-node=1", environment=left)
    assert not [left.keys() & task.keys() for task in tasks if left.keys() & task.keys()]


def test_arguments_arrive_unharmed(cluster, reported):
    odd = 'logging.sample_prompts=["un\'s $(touch pwned) `touch pwned`\\n ü你 *\n x"]'
    reported("--ntasks=1", arguments=(odd,))
    assert (cluster.project / "task-0.arguments").read_text().split("\0")[-2] == odd
    assert not (cluster.project / "pwned").exists()


def test_a_run_launched_from_a_messy_shell_is_the_run(cluster, config):
    """Left-over ranks, another folder without a clone, no layout, --export=NONE, an odd value: two ranks train."""
    settings = cluster.project / "slurm/cluster.env"
    settings.write_text(settings.read_text() + "export LD_LIBRARY_PATH=$NOT_SET_ANYWHERE\n")
    (cluster.project / "slurm/train.sbatch").unlink()
    cluster.environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    odd = 'logging.sample_prompts=["$(touch pwned)\'ü你\n"]'
    job = cluster.launch("--nodes=2", config, "train.steps=3", odd, "--", "--export=NONE", "-p", "main")
    record = cluster.wait_for_end(job, 300)
    assert (record["JobState"], record["JobName"]) == ("COMPLETED", "run"), cluster.log(job)
    summary = json.loads((cluster.project / "run/summary.json").read_text())
    assert summary["machine"]["ranks"] == 2
    assert summary["samples"][0]["prompt"] == "$(touch pwned)'ü你\n"
    assert list(losses(cluster.project / "run")) == [1, 2, 3]
    assert not (cluster.project / "pwned").exists()
    assert "no node has answered" not in cluster.log(job)


def test_a_signal_while_the_nodes_are_checked_brings_the_job_back(cluster, config):
    """There are no ranks yet that could save anything."""
    folder = cluster.project
    check = f"[ -e {folder}/told ] || {{ touch {folder}/told; kill -USR1 $PPID; sleep 1; }}"
    stand_in(cluster, "#!/bin/bash\nexit 0\n", check)
    job = cluster.submit(config)
    record = cluster.wait_for_end(job, 60)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)


def test_a_signal_for_the_batch_script_alone_reaches_the_ranks(cluster, config):
    """As sbatch --signal=B:USR1@120 sends it."""
    task = 'trap "touch heard-$SLURM_PROCID; exit 75" USR1; touch up-$SLURM_PROCID; while sleep 0.2; do :; done'
    stand_in(cluster, f"#!/bin/bash\n[ -e heard-1 ] || exec /usr/bin/srun /bin/bash -c '{task}'\n")
    job = cluster.run("sbatch", "--parsable", "--nodes=2", "--ntasks=2", "slurm/train.sbatch", config).strip()
    cluster.wait_until(lambda: len(list(cluster.project.glob("up-*"))) == 2, job, 60)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    record = cluster.wait_for_end(job, 60)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    assert len(list(cluster.project.glob("heard-*"))) == 2
