"""A Slurm job's first node, slurm/train.sbatch and launcher/job.py, with stand-ins for srun and scontrol. The same
under a real Slurm: tests/slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_pipeline.base.errors import UserError
from launcher.job import layout, run_job
from launcher.time_limit import lead_seconds, limit_seconds, require_lead_below, script_lead

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "slurm/train.sbatch"

JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}

# They write down what they were given; srun then does what the test says.
SRUN = """#!/bin/bash
printf '%s\\0' "$@" > {folder}/srun.arguments
env -0 > {folder}/srun.environment
{does}
"""
SCONTROL = """#!/bin/bash
case $1 in
  requeue) echo "$2" >> {folder}/requeued ;;
  *) echo "JobId=12 RunTime=00:00:01 TimeLimit={limit} Command=x TimeLimit=9" ;;
esac
"""


class Node:
    """The first node of a job, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        (folder / "slurm").mkdir(parents=True)
        self.bin.mkdir()
        settings = {"run": {"directory": "run", "device": "cpu"}, "data": {"sources": [{"paths": ["x"]}]}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            monkeypatch.delenv(name)
        for name, value in (JOB | {"SLURM_SUBMIT_DIR": str(folder)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.chdir(folder)
        self.has()

    def has(self, does: str = "exit 0", limit: str = "UNLIMITED") -> None:
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.bin / name).write_text(text.format(folder=self.folder, does=does, limit=limit))
            (self.bin / name).chmod(0o755)

    def settings(self, text: str) -> None:
        (self.folder / "slurm/cluster.env").write_text(text)

    def batch(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the template, as slurmd does."""
        command = ["bash", str(TEMPLATE), *arguments]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
        )

    def ranks_environment(self) -> dict[str, str]:
        entries = (self.folder / "srun.environment").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def ranks_arguments(self) -> list[str]:
        return (self.folder / "srun.arguments").read_text().split("\0")[:-1]

    def requeued(self) -> int:
        record = self.folder / "requeued"
        return len(record.read_text().split()) if record.exists() else 0


@pytest.fixture
def node(tmp_path, monkeypatch):
    return Node(tmp_path / "node", monkeypatch)


def test_the_settings_may_read_what_is_not_set_and_fail_where_they_like(node):
    """Nothing of this is wrong in somebody's own shell; `set -u` killed the job at the first line."""
    node.settings(
        'export LD_LIBRARY_PATH=/x:$LD_LIBRARY_PATH MINE="a b"\nfalse\nset -eu\n[ -d /nowhere ] && export MORE=1\n'
        "set -- other.yaml\n"
    )
    ended = node.batch("config.yaml", "run.seed=3", LD_LIBRARY_PATH="")
    assert ended.returncode == 0, ended.stderr
    assert node.ranks_environment()["LD_LIBRARY_PATH"] == "/x:"
    assert node.ranks_environment()["MINE"] == "a b"
    assert node.ranks_arguments()[-5:] == ["-m", "llmscale", "train", "config.yaml", "run.seed=3"]


@pytest.mark.parametrize("line", ["set -u\nexport A=$NOT_SET_ANYWHERE", "exit 0"])
def test_settings_that_end_the_shell_are_named(node, line):
    node.settings(line + "\n")
    ended = node.batch("config.yaml")
    assert ended.returncode == 2
    assert "node/slurm/cluster.env ended the shell" in ended.stderr
    assert not (node.folder / "srun.arguments").exists()


def test_what_the_job_gets_the_ranks_get(node):
    """sbatch --export=NONE sets SLURM_EXPORT_ENV, which srun would obey: no PATH, no python."""
    left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    node.settings("export MASTER_ADDR=10.0.0.7\n")
    shell = {"SLURM_EXPORT_ENV": "NONE", "SLURM_CPUS_PER_TASK": "3", "MASTER_ADDR": "localhost", **left}
    ended = node.batch("config.yaml", **shell)
    assert ended.returncode == 0, ended.stderr
    environment = node.ranks_environment()
    assert environment["SLURM_EXPORT_ENV"] == "ALL"
    assert environment["SRUN_CPUS_PER_TASK"] == "3"
    assert environment["SLURM_KILL_BAD_EXIT"] == "0"
    assert not left.keys() & environment.keys(), "another launch's ranks are not this job's"
    assert environment["MASTER_ADDR"] == "10.0.0.7", "what the settings say is this job's"
    python = node.ranks_arguments()[node.ranks_arguments().index("-m") - 1]
    assert Path(python).is_absolute()


def without_python(node: Node) -> dict[str, str]:
    """A PATH that has what the template needs, but no Python."""
    for name in ("bash", "hostname"):
        (node.bin / name).symlink_to(f"/bin/{name}")
    return {"PATH": str(node.bin)}


def test_no_python_says_where_to_name_one(node):
    ended = node.batch("config.yaml", **without_python(node))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "no python on the PATH" in ended.stderr
    assert "slurm/cluster.env" in ended.stderr
    assert "LLMSCALE_PYTHON" in ended.stderr


def test_the_python_of_the_settings_wins_then_that_of_the_submitter(node):
    bare = without_python(node)
    (node.folder / "mine").symlink_to(sys.executable)
    (node.folder / "wrong").write_text("#!/bin/bash\nexit 1\n")
    (node.folder / "wrong").chmod(0o755)
    ended = node.batch(f"--python={sys.executable}", "config.yaml", **bare)
    assert ended.returncode == 0, ended.stderr
    assert sys.executable in node.ranks_arguments()
    node.settings(f"export LLMSCALE_PYTHON='{node.folder}/wrong'\n")
    ended = node.batch(f"--python={sys.executable}", "config.yaml", **bare)
    assert ended.returncode == 2
    assert f"{node.folder}/wrong has no llmscale" in ended.stderr


def test_the_script_a_rank_starts_with_names_a_missing_interpreter(node):
    node.has(does='"${@:1:3}" /nowhere/python "${@:5}"')
    ended = node.batch("config.yaml", SLURM_LOCALID="0")
    assert ended.returncode == 2
    assert "no /nowhere/python on" in ended.stderr
    assert "slurm/cluster.env" in ended.stderr


def test_arguments_arrive_unharmed(node):
    odd = "run.directory=r\"un's $(touch pwned)`touch pwned`\n\\ ü你 *"
    ended = node.batch("config.yaml", odd)
    assert ended.returncode == 0, ended.stderr
    assert node.ranks_arguments()[-1] == odd
    assert not (node.folder / "pwned").exists()


@pytest.mark.parametrize(
    ("given", "ranks", "options"),
    [
        ({"SLURM_NTASKS": "4"}, 4, []),
        ({}, 2, ["--ntasks=2", "--ntasks-per-node=1"]),
        ({"SLURM_NTASKS_PER_NODE": "2"}, 4, ["--ntasks=4", "--ntasks-per-node=2"]),
        ({"SLURM_GPUS_ON_NODE": "8"}, 16, ["--ntasks=16", "--ntasks-per-node=8"]),
        ({"SLURM_GPUS_ON_NODE": "3", "SLURM_GPUS": "a100:6"}, 6, ["--ntasks=6", "--ntasks-per-node=3"]),
        ({"SLURM_GPUS_ON_NODE": "3", "SLURM_GPUS": "a100:4,h100:2"}, 6, ["--ntasks=6", "--ntasks-per-node=3"]),
    ],
)
def test_one_rank_for_each_gpu_or_node_where_nobody_has_said(given, ranks, options):
    environment = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "32(x2)", **given}
    assert layout(environment, on_gpu=True) == (ranks, options)


@pytest.mark.parametrize(
    ("tasks", "nodes", "cpus", "per_node", "ranks"),
    [
        (None, "2", "2(x2)", "2", 4),  # Slurm does not say
        (4, "2", "2(x2)", "2", 4),
        (2, "1", "2", "2", 2),
        (2, "1", "2", "", 2),
        (4, "1", "8", "2", 2),  # fewer nodes only: as many ranks on each as was asked for
        (3, "2", "2,1", "2", 3),
        (6, "3", "2(x3)", "", 6),
    ],
)
def test_ranks_of_a_job_that_was_changed_in_the_queue(tasks, nodes, cpus, per_node, ranks):
    """sbatch's own variables stay those of its submission."""
    environment = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": per_node}
    environment |= {"SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_CPUS_PER_NODE": cpus, "SLURM_JOB_ID": "12"}
    options = [] if ranks == 4 else [f"--ntasks={ranks}"]
    assert layout(environment, on_gpu=False, tasks=tasks) == (ranks, options)


def test_fewer_cpus_than_ranks_are_refused_unless_they_may_share_them():
    environment = {
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_CPUS_PER_NODE": "3",
        "SLURM_JOB_ID": "12",
    }
    with pytest.raises(UserError, match=r"4 rank\(s\) take 4 CPUs, but the job has been given 3; .* JobId=12 NumTasks"):
        layout(environment, on_gpu=False, tasks=4)
    assert layout({**environment, "SLURM_OVERCOMMIT": "1"}, on_gpu=False, tasks=4) == (4, [])


def test_a_run_on_the_cpu_takes_no_rank_for_each_gpu():
    environment = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "8"}
    assert layout(environment, on_gpu=False)[0] == 2


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "32,1"}, ("8 CPUs", "has 1;", "--ntasks-per-node=8")),
        (
            {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "16(x2)", "SLURM_CPUS_PER_TASK": "4"},
            ("32 CPUs", "has 16;"),
        ),
        ({"SLURM_GPUS_ON_NODE": "3", "SLURM_GPUS": "5"}, ("5 GPUs", "3 on the first of 2")),
    ],
)
def test_what_gives_no_layout_is_refused_with_both_values(given, values):
    with pytest.raises(UserError) as caught:
        layout({"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "64(x2)"} | given, on_gpu=True)
    assert all(value in str(caught.value) for value in values), caught.value


def test_a_time_limit_not_above_the_signals_lead_ends_the_job_before_any_rank_starts(node):
    node.has(limit="00:02:00")
    with pytest.raises(UserError, match=r"120 s \(--time\) is not above the 120 s"):
        run_job(TEMPLATE, ["config.yaml"])
    assert not (node.folder / "srun.arguments").exists()
    assert node.requeued() == 0


@pytest.mark.parametrize("how", ["lead", "environment", "accounts"])
def test_a_shorter_lead_is_heard(node, how, monkeypatch):
    node.has(limit="00:02:00")
    if how == "environment":
        monkeypatch.setenv("SBATCH_SIGNAL", "B:USR1@30")
    if how == "accounts":
        (node.bin / "sacct").write_text("#!/bin/bash\necho 'sbatch --time=2 --signal USR1@30 slurm/train.sbatch c'\n")
        (node.bin / "sacct").chmod(0o755)
    assert run_job(TEMPLATE, [*(["--lead=30"] if how == "lead" else []), "config.yaml"]) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 120),
        ("2:30", 180),  # sbatch rounds up to minutes
        ("00:02:00", 120),
        ("1:00:00", 3600),
        ("1-0", 86400),
        ("1-2:3", 93780),
        ("1-02:03:04", 93840),
        ("UNLIMITED", None),
        ("infinite", None),
        ("0", None),
        ("00:00:00", None),
        ("0-0", None),
    ],
)
def test_time_limits_as_sbatch_writes_them(text, seconds):
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "x-1", "1h"])
def test_a_time_limit_that_is_none_is_refused(text):
    with pytest.raises(UserError):
        limit_seconds(text)


def test_leads_as_sbatch_writes_them(tmp_path):
    given = ["USR1@120", "B:USR1@20", "RB:10@5", "USR1"]
    assert [lead_seconds(option) for option in given] == [120, 20, 5, 60]
    assert script_lead(TEMPLATE) == 120
    (tmp_path / "other").write_text("#!/bin/bash\n#SBATCH --time=1\n")
    assert script_lead(tmp_path / "other") == 0
    require_lead_below(121, 120)
    require_lead_below(None, 120)


def save(step: int) -> str:
    """A start that makes a checkpoint and is preempted."""
    return f"mkdir -p run/checkpoints/step-{step:08d}; exit 75"


def test_three_ends_without_a_step_stop_the_job_and_a_step_counts_them_anew(node):
    ends = ["exit 75", "exit 75", save(4), "exit 75", save(4), "exit 75"]
    codes = []
    for does in ends:
        node.has(does=does)
        codes.append(run_job(TEMPLATE, ["config.yaml"]))
    assert codes == [75, 75, 75, 75, 75, 1], "the fifth start made no new step, and the sixth none"
    assert node.requeued() == 5


def test_the_reason_for_stopping_is_told(node, capsys):
    begun = "mkdir -p run/checkpoints/step-00000004; touch run/config.yaml; echo '{\"attempt\": 7}' > run/outcome.json"
    node.has(does=f"{begun}; exit 75")
    for _ in range(4):
        code = run_job(TEMPLATE, ["config.yaml"])
    assert code == 1
    reason = "3 times in a row without a new step (newest checkpoint: step-00000004)"
    assert reason in capsys.readouterr().err
    assert node.requeued() == 3
    outcome = json.loads((node.folder / "run/outcome.json").read_text())
    assert (outcome["outcome"], outcome["attempt"]) == ("failed", 7)
    assert reason in outcome["reason"]


def test_a_run_that_never_began_is_left_as_if_new(node):
    """Another file in its folder would make it somebody's own."""
    node.has(does="exit 75")
    assert [run_job(TEMPLATE, ["config.yaml"]) for _ in range(3)] == [75, 75, 1]
    assert [path.name for path in (node.folder / "run").iterdir()] == ["logs"]


def test_another_job_on_the_same_run_begins_to_count_anew(node, monkeypatch):
    node.has(does="exit 75")
    for job in ("12", "12", "13", "13"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert run_job(TEMPLATE, ["config.yaml"]) == 75
    assert json.loads((node.folder / "run/logs/requeues.json").read_text()) == {"job": "13", "idle_ends": 2}


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"job": "12", "idle_ends": "x"}', '{"idle_ends": 2}'])
def test_a_damaged_count_is_no_reason_to_fail(node, damage):
    (node.folder / "run/logs").mkdir(parents=True)
    (node.folder / "run/logs/requeues.json").write_text(damage)
    node.has(does="exit 75")
    assert run_job(TEMPLATE, ["config.yaml"]) == 75
    assert node.requeued() == 1


def test_a_count_that_cannot_be_kept_does_not_go_on_for_ever(node):
    (node.folder / "run").write_text("a file")
    node.has(does="exit 75")
    with pytest.raises(UserError, match=r"requeues\.json"):
        run_job(TEMPLATE, ["config.yaml"])
    assert node.requeued() == 0


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_only_saved_runs_go_back_into_the_queue(node, code):
    node.has(does=f"exit {code}")
    assert run_job(TEMPLATE, ["config.yaml"]) == code
    assert node.requeued() == 0


RECORDED = """mkdir -p run; printf '{{"outcome": "%s", "time": %s}}' {outcome} $(date +%s.%N) > run/outcome.json"""


@pytest.mark.parametrize(("outcome", "ends", "times"), [("done", 0, 0), ("preempted", 75, 1), ("failed", 134, 0)])
def test_a_rank_that_crashes_when_the_run_is_over_changes_nothing(node, capsys, outcome, ends, times):
    node.has(does=f"{RECORDED.format(outcome=outcome)}; exit 134")
    assert run_job(TEMPLATE, ["config.yaml"]) == ends
    assert node.requeued() == times
    warned = f"warning: a rank ended with code 134 when run was {outcome} already" in capsys.readouterr().err
    assert warned == (outcome != "failed")


@pytest.mark.parametrize("recorded", ["1000.0", '"later"', "null", "1e999"])
def test_what_an_earlier_start_has_recorded_does_not_excuse_a_failure(node, recorded):
    (node.folder / "run").mkdir()
    (node.folder / "run/outcome.json").write_text(f'{{"outcome": "preempted", "time": {recorded}}}')
    node.has(does="exit 134")
    assert run_job(TEMPLATE, ["config.yaml"]) == 134
    assert node.requeued() == 0


def test_a_cancelled_job_does_not_go_back_into_the_queue(node):
    """scancel sends TERM to the batch script and to the ranks, which save."""
    node.has(does="kill -TERM $PPID; sleep 0.1; exit 75")
    assert run_job(TEMPLATE, ["config.yaml"]) == 75
    assert node.requeued() == 0


def test_a_signal_for_the_batch_script_alone_reaches_the_ranks(node):
    """sbatch --signal=B:USR1@120 tells only the script; srun passes on what it gets."""
    node.has(does="trap 'touch run.heard; exit 75' USR1; kill -USR1 $PPID; for _ in {1..100}; do sleep 0.05; done")
    assert run_job(TEMPLATE, ["config.yaml"]) == 75
    assert (node.folder / "run.heard").exists()
    assert node.requeued() == 1


def test_a_job_that_may_not_be_requeued_says_how_to_go_on(node, capsys):
    (node.bin / "scontrol").write_text("#!/bin/bash\necho 'Requested operation is presently disabled' >&2; exit 1\n")
    (node.bin / "srun").write_text("#!/bin/bash\nexit 75\n")
    assert run_job(TEMPLATE, ["config.yaml"]) == 75
    said = capsys.readouterr().err
    assert "presently disabled" in said
    assert "submit it again" in said


def test_a_snapshot_without_its_code_does_not_run_other_code(node):
    (node.folder / "snapshot").mkdir()
    ended = node.batch(f"--snapshot={node.folder}/snapshot", "config.yaml")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert f"the snapshot {node.folder}/snapshot of this job has no code any more" in ended.stderr
    assert not (node.folder / "srun.arguments").exists()


def test_mistakes_are_told_before_any_rank_starts(node, monkeypatch):
    with pytest.raises(UserError, match=r"train\.stepz"):
        run_job(TEMPLATE, ["config.yaml", "train.stepz=1"])
    with pytest.raises(UserError, match="must be a multiple of the data-parallel size"):
        run_job(TEMPLATE, ["config.yaml", "train.global_batch=6"])
    with pytest.raises(UserError, match="no CONFIG"):
        run_job(TEMPLATE, [])
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    with pytest.raises(UserError, match="the job is heterogeneous, of 2 components"):
        run_job(TEMPLATE, ["config.yaml"])
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(UserError, match="submit it with sbatch"):
        run_job(TEMPLATE, ["config.yaml"])
    assert not (node.folder / "srun.arguments").exists()
