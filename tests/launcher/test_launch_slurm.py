"""`llmscale launch slurm`, with a stand-in for sbatch that writes down what it was given."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import RecordWriter
from llmscale.config import load_config
from llmscale.report.goodput import ACTIVITIES
from llmscale.train.run_directory import RunDirectory
from tests.launcher.login_node import ROOT, assert_refused, invoke


def test_a_job_is_submitted_with_any_option_under_the_runs_name(login):
    options = ["--partition=big", "-c", "8", "--mem", "0", "--array=0-3%1", "--dependency=afterok:12", "-HQ"]
    login.launch(
        *("--nodes", 2, "--ntasks-per-node", 8, "--time", "1:00:00", "config.yaml", "run.seed=3", "--", *options)
    )
    given = login.arguments()
    script = next(word for word in given if word.endswith(".sbatch"))
    assert Path(script).read_bytes() == (ROOT / "slurm/train.sbatch").read_bytes()
    place = given.index(script)
    assert given[place - len(options) : place] == options, "the last word is theirs"
    ours = ["--parsable", "--nodes=2", "--ntasks-per-node=8", "--time=1:00:00", "--job-name=run-7"]
    assert [word for word in given[: place - len(options)] if not word.startswith("--output")] == ours
    snapshot = next(word for word in given if word.startswith("--snapshot=")).removeprefix("--snapshot=")
    assert given[-1] == f"{snapshot}/config.yaml"
    assert load_config(given[-1]) == load_config("config.yaml", ["run.seed=3"])


def test_stdout_is_the_number_and_stderr_how_to_go_on(login):
    result = invoke("config.yaml", "data.sources.0.paths=[a b]", "--", "-p", "big")
    assert result.stdout == "4711\n"
    assert "tail -F slurm-4711.log" in result.stderr
    assert "scancel 4711" in result.stderr
    assert "llmscale launch slurm config.yaml 'data.sources.0.paths=[a b]' -- -p big" in result.stderr


@pytest.mark.parametrize(
    ("options", "log"),
    [
        (["--output=logs/%x-%j.out"], "logs/run-7-4711.out"),
        (["-o", "a b/%A.txt", "-J", "mine"], "'a b/4711.txt'"),
        (["--array=0-3%1"], "slurm-4711_*.log"),
        (["-D", "mine"], "mine/slurm-4711.log"),
        (["--chdir=mine", "-o", "/tmp/%j"], "/tmp/4711"),
    ],
)
def test_the_log_to_follow_is_the_jobs(login, options, log):
    for folder in ("logs", "a b", "mine"):
        (login.folder / folder).mkdir()
    assert f"tail -F {log}\n" in invoke("config.yaml", "--", *options).stderr


@pytest.mark.parametrize("directory", ["runs/sweep-{job}_{array_task}", "runs/sweep/{array_task}"])
def test_a_job_array_is_named_without_its_placeholders(login, directory):
    login.launch("config.yaml", f"run.directory={directory}", "--", "--array=0-3")
    assert "--job-name=sweep" in login.arguments()


def test_a_job_of_another_cluster_is_cancelled_there(login):
    login.answers("echo '4711;far'")
    result = invoke("config.yaml")
    assert result.stdout == "4711\n"
    assert "scancel --clusters=far 4711" in result.stderr


def test_what_is_no_submission_is_shown_as_it_is(login):
    login.answers("echo 'sbatch: Job 9 to start at 2030-01-01' >&2")
    result = invoke("config.yaml", "--", "--test-only")
    assert (result.exit_code, result.stdout.strip()) == (0, "")


ODD = "run.directory=r\"un's $(touch pwned)`touch pwned`\n\\ ü你 *"


def test_odd_values_arrive_unharmed(login):
    login.launch("--no-snapshot", "config.yaml", ODD)
    assert login.arguments()[-1] == ODD
    login.launch("config.yaml", ODD)
    assert load_config(login.arguments()[-1]) == load_config("config.yaml", [ODD])
    assert not (login.folder / "pwned").exists()


def test_what_is_printed_is_a_script_that_submits_the_same(login):
    login.settings("export SBATCH_PARTITION=big\n")
    printed = login.launch("--print", "--nodes", 2, "config.yaml", ODD, "--", "--mem=8G")
    assert not login.submitted()
    login.answers("cat > script")
    subprocess.run(["bash"], input=printed, text=True, check=True)
    by_print, partition = login.arguments(), login.environment()["SBATCH_PARTITION"]
    assert partition == "big"
    assert (login.folder / "script").read_bytes() == (ROOT / "slurm/train.sbatch").read_bytes()
    login.answers()
    login.launch("--nodes", 2, "config.yaml", ODD, "--", "--mem=8G")
    direct = login.arguments()
    assert [word for word in direct if not word.endswith(".sbatch")] == [w for w in by_print if w != "/dev/stdin"]
    assert not (login.folder / "pwned").exists()


def test_a_snapshot_keeps_code_and_config_of_now_and_is_shared_by_equal_submissions(login):
    login.launch("config.yaml", "run.seed=3")
    first = Path(login.arguments()[-1]).parent
    assert first.parent == login.folder / "runs/run-7/snapshots"
    for package in ("llmscale", "launcher", "data_pipeline"):
        theirs = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / package).rglob("*.py")}
        ours = {
            path.relative_to(first / "code"): path.read_bytes() for path in (first / "code" / package).rglob("*.py")
        }
        assert ours == theirs
    assert (first / "code/launcher/train.sbatch").read_bytes() == (ROOT / "slurm/train.sbatch").read_bytes()
    login.launch("config.yaml", "run.seed=3")
    assert Path(login.arguments()[-1]).parent == first
    login.launch("config.yaml", "run.seed=4")
    assert Path(login.arguments()[-1]).parent != first
    assert len(list(first.parent.iterdir())) == 2


@pytest.mark.parametrize("name", ["config.yaml", "code/launcher/job.py", "code/llmscale/cli.py"])
def test_a_snapshot_that_is_not_what_it_was_is_not_submitted_again(login, name):
    login.launch("config.yaml")
    kept = Path(login.arguments()[-1]).parent / name
    (login.folder / "arguments").unlink()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert_refused(login, "config.yaml", says=[f"{kept} is not as it was", "rm -r "])
    kept.unlink()
    assert_refused(login, "config.yaml", says=[f"{kept} is not as it was"])


def test_jobs_whose_folders_have_their_numbers_share_a_snapshot_beside_them(login):
    login.launch("config.yaml", "run.directory=sweep/{job}-{array_task}", "--", "--array=0-3")
    assert Path(login.arguments()[-1]).parents[2] == login.folder / "sweep"


def test_a_snapshot_that_cannot_be_written_is_named(login):
    (login.folder / "runs").write_text("")
    assert_refused(login, "config.yaml", says=["runs", "--no-snapshot"])


def test_a_disk_that_is_full_is_named_by_the_run_folder(login, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr("launcher.snapshot.shutil.copyfile", full)
    assert_refused(login, "config.yaml", says=[f"cannot write {login.folder}/runs/run-7/snapshots (No space left"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--output=logs/%j.out"], "--output is logs/%j.out, but logs is no folder"),
        (["-e", "logs/a b/%j"], "mkdir -p 'logs/a b'"),
        (["--output=bin"], "--output is bin, which is a folder; give the log a name: bin/%j.log"),
        (["--chdir=elsewhere"], "--chdir is elsewhere, which is no folder"),
        (["--chdir=config.yaml"], "--chdir is config.yaml, which is no folder"),
        (["--signal=USR2@90"], "write --signal=USR1@90"),
        (["--signal", "sigint"], "--signal is sigint, at which ranks do not save"),
        (["--signal=B:TERM@90"], "--signal is B:TERM@90, of which the batch script passes on nothing"),
    ],
)
def test_what_would_end_a_job_without_a_word_is_not_submitted(login, options, says):
    assert_refused(login, "config.yaml", "--", *options, says=[says])
    assert sorted(path.name for path in login.folder.iterdir()) == ["bin", "config.yaml"]


def test_logs_of_the_clusters_settings_count_too(login):
    login.settings("export SBATCH_OUTPUT=logs/%x/%j\n")
    login.launch("config.yaml")  # only the job knows the folder
    login.settings("export SBATCH_ERROR=logs/%j\n")
    (login.folder / "arguments").unlink()
    assert_refused(login, "config.yaml", says=["--error is logs/%j"])


def test_an_array_of_the_clusters_settings_counts_too(login):
    login.settings("export SBATCH_ARRAY_INX=0-3\n")
    assert_refused(login, "config.yaml", says=["--array=0-3 starts several runs in run.directory 'runs/run-7'"])
    login.launch("config.yaml", "run.directory=runs/{job}-{array_task}")
    assert "--output=slurm-%A_%a.log" in login.arguments()


def test_no_nodes_at_all_are_left_to_sbatch_to_refuse(login):
    login.launch("config.yaml", "--", "--nodes=0", "--gpus=8")
    assert "--nodes=0" in login.arguments()


@pytest.mark.parametrize(
    ("options", "settings", "again"),
    [
        ([], "", True),
        (["--no-requeue"], "", False),
        ([], "export SBATCH_NO_REQUEUE=1", False),
        (["--requeue"], "export SBATCH_NO_REQUEUE=1", True),
    ],
)
def test_a_job_that_may_not_go_back_is_not_said_to(login, options, settings, again):
    login.settings(settings + "\n")
    said = invoke("config.yaml", "--", *options).stderr
    assert ("the job queues itself again" in said, "the job does not queue itself again" in said) == (again, not again)


@pytest.mark.parametrize("signal", ["USR1", "R:10@90", "B:sigusr1@90", "TERM@90", "RB:USR1@90"])
def test_signals_at_which_ranks_save_are_submitted(login, signal):
    login.launch("config.yaml", "--", f"--signal={signal}")
    assert f"--signal={signal}" in login.arguments()


def test_a_finished_run_does_not_wait_in_the_queue(login):
    run = RunDirectory("runs/run-7")
    run.path.mkdir(parents=True)
    shutil.copy("config.yaml", run.config_file)
    run.record_outcome("done", attempt=1, step=80)
    for words in (["config.yaml"], ["--resume", "runs/run-7"]):
        assert_refused(login, *words, "train.steps=80", says=["runs/run-7 is finished: all 80 steps are done"])
    login.launch("config.yaml", "train.steps=81")
    (login.folder / "arguments").unlink()
    run.record_outcome("done", attempt=1, step=60, stopped="no gain")
    assert_refused(login, "config.yaml", "train.steps=81", says=["all 60 steps are done"])


def test_a_run_is_continued_on_another_number_of_nodes_by_its_own_config(login):
    run = login.folder / "runs/run-7"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text((login.folder / "config.yaml").read_text() + "train: {steps: 77}\n")
    (login.folder / "config.yaml").unlink()
    login.launch("--resume", run, "--nodes", 4, "logging.interval=3")
    resolved = load_config(login.arguments()[-1])
    assert (resolved.run.directory, resolved.train.steps, resolved.logging.interval) == (str(run), 77, 3)
    assert "--nodes=4" in login.arguments()


@pytest.mark.parametrize("arguments", [["--resume", "runs/none"], []])
def test_without_a_config_or_a_run_nothing_is_submitted(login, arguments):
    result = invoke(*arguments)
    assert result.exit_code
    assert "config.yaml" in str(result.exception) or "CONFIG" in result.output
    assert not login.submitted()


CHAIN_SBATCH = "printf '%s ' \"$@\" >> calls; echo >> calls; echo $((4710 + $(grep -c -- --parsable calls)))"


@pytest.mark.parametrize("printed", [False, True])
def test_a_chain_submits_jobs_that_follow_each_other(login, printed):
    login.answers(CHAIN_SBATCH)
    if printed:
        script = login.launch("--print", "--chain", 3, "config.yaml", ODD)
        result = subprocess.run(["bash"], input=script, text=True, check=True, capture_output=True)
        assert result.stdout.split() == ["4711", "4712", "4713"]
    else:
        result = invoke("--chain", 3, "config.yaml")
        assert result.stdout.split() == ["4711", "4712", "4713"]
        assert "scancel 4711 4712 4713" in result.stderr
    calls = (login.folder / "calls").read_text().splitlines()
    calls = [call for call in calls if "--parsable" in call]
    assert sum("--no-requeue" in call for call in calls) == 3
    words = [word for call in calls for word in call.split() if word.startswith("--dependency")]
    assert words == ["--dependency=afternotok:4711", "--dependency=afternotok:4712"]
    assert sum("--kill-on-invalid-dep=yes" in call for call in calls) == 2


BIG = ["model.layers=48", "model.hidden_size=8192", "model.heads=64", "model.vocab_size=50000", "run.device=cuda"]


@pytest.mark.parametrize(
    ("options", "warned"),
    [(["--gpus-per-node=h100:8"], True), (["--gres=gpu:a100:8"], True), (["--gpus-per-node=8"], False)],
)
def test_a_model_that_the_gpus_do_not_hold_is_told_of_before_it_waits_in_the_queue(login, options, warned):
    result = invoke("config.yaml", *BIG, "train.global_batch=64", "--", *options)
    assert result.exception is None, result.output
    assert ("GiB a GPU, but a" in result.stderr) == warned
    assert ("llmscale plan --gpus 8" in result.stderr) == warned
    assert login.submitted()


def test_a_lead_that_is_short_for_the_runs_own_checkpoints_is_told_of(login):
    rows = [{"seconds": dict.fromkeys(ACTIVITIES, 0.0) | {"checkpoint": spent}} for spent in (0.0, 90.0, 95.0)]
    with RecordWriter(login.folder / "runs/run-7/time.jsonl", 1) as writer:
        for row in rows:
            writer.write({"step": 1, "time": 1.0, **row})
    assert "has taken 90 s" in invoke("config.yaml").stderr
    assert "has taken" not in invoke("config.yaml", "--", "--signal=USR1@200").stderr


def test_a_chain_of_arrays_is_refused(login):
    assert_refused(
        login,
        "--chain",
        2,
        "config.yaml",
        "run.directory=r-{array_task}",
        "--",
        "-a0-3",
        says=["--chain=2", "--array=0-3"],
    )


def test_nothing_heavy_is_imported_to_print(login):
    script = (
        "import sys, json\nfrom click.testing import CliRunner\nfrom launcher.commands import launch\n"
        "result = CliRunner().invoke(launch, ['slurm', '--print', 'config.yaml'])\nassert '#SBATCH' in result.output\n"
        "print(json.dumps(sorted({'torch', 'deepspeed'} & set(sys.modules))))"
    )
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == []
    assert time.monotonic() - start < 10, "under a second on an idle machine"


def test_the_clusters_settings_are_somebodys_own_shell(login):
    login.settings(
        'export LD_LIBRARY_PATH=/x:$NOT_SET SBATCH_PARTITION="big one"\necho "loading ..."\nexport SBATCH_JOB_NAME=n\n'
        "[ -d /nowhere ] && export MORE=1\n"
    )
    assert login.launch("config.yaml") == "4711\n"
    environment = login.environment()
    assert (environment["LD_LIBRARY_PATH"], environment["SBATCH_PARTITION"]) == ("/x:", "big one")
    assert "--job-name=n" in login.arguments()


@pytest.mark.parametrize("line", ["exit 0", "set -u; export A=$NOT_SET_ANYWHERE"])
def test_settings_that_end_the_shell_are_named(login, line):
    login.settings(line + "\n")
    assert_refused(login, "config.yaml", says=["slurm/cluster.env ended the shell"])


def test_settings_that_lead_nowhere_are_named(login):
    (login.folder / "slurm").mkdir()
    (login.folder / "slurm/cluster.env").symlink_to("gone.env")
    assert_refused(login, "config.yaml", says=["slurm/cluster.env is a link to gone.env, which does not exist"])


def test_a_working_directory_that_is_gone_is_named(login, monkeypatch):
    from llmscale.cli import cli

    gone = login.folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = CliRunner().invoke(cli, ["launch", "slurm", str(login.folder / "config.yaml")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "the working directory does not exist any more" in result.stderr
    monkeypatch.chdir(login.folder)


def test_another_launch_or_job_in_the_shell_is_not_handed_on(login, monkeypatch):
    """Such as in an interactive job, from which one may submit."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "SLURM_JOB_ID": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    login.launch("config.yaml")
    left = {name for name in login.environment() if name.startswith("SLURM_")}
    assert left == {"SLURM_CONF"}
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & login.environment().keys()


def test_what_sbatch_refuses_is_passed_on(login):
    said = "sbatch: error: invalid partition specified: big\\nsbatch: error: Batch job submission failed\\n"
    login.answers(f"printf '{said}' >&2; exit 1")
    result = invoke("config.yaml")
    assert isinstance(result.exception, UserError)
    assert "job: invalid partition specified: big; Batch job submission failed; see" in str(result.exception)


def test_a_missing_sbatch_is_named(login, monkeypatch):
    (login.folder / "bin/sbatch").unlink()
    (login.folder / "bin/bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(login.folder / "bin"))
    result = invoke("config.yaml")
    assert isinstance(result.exception, UserError)
    assert "sbatch is not on the PATH" in str(result.exception)


@pytest.mark.slow
def test_an_installed_wheel_needs_no_clone(login, tmp_path):
    """Build the wheel, unpack it and submit from another folder."""
    pytest.importorskip("setuptools", minversion="77")
    source, installed = tmp_path / "source", tmp_path / "installed"
    for folder in ("launcher", "llmscale", "data_pipeline", "slurm"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "llmscale", "launch", "slurm", "config.yaml"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "4711\n", result.stderr
    script = next(Path(word) for word in login.arguments() if word.endswith(".sbatch"))
    assert script.is_relative_to(installed)
    assert script.read_bytes() == (ROOT / "slurm/train.sbatch").read_bytes()
