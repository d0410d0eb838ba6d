"""What the check of nodes before a job finds, on this machine and in answers as nodes give them."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from launcher.node_check import Wanted, mistake, problems, unfit_gpu
from launcher.nodes import Exclusions, faulty_nodes, judged, sick_nodes
from llmscale.train.run_directory import RunDirectory


def wanted(folder: Path, **changes: object) -> Wanted:
    return Wanted(**({"run": str(folder), "mark": "", "first": "localhost", "gpus": 0, "free_bytes": 1} | changes))


def test_a_fit_node_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    assert problems(wanted(tmp_path, mark="mark")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mark": "missing"}, "does not see the run folder"),
        ({"first": "no-such-node.invalid"}, "does not know the address of no-such-node.invalid"),
        ({"address": "no-such-node.invalid"}, "does not know the address of no-such-node.invalid"),
        ({"free_bytes": 1 << 60}, "bytes free there, but a checkpoint takes 1,152,921,504,606,846,976"),
        ({"run": "/proc/1/no-run"}, "cannot write in the run folder"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in "; ".join(problems(wanted(tmp_path, **changes), seconds=0.3))


def test_gpus_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = "0, GPU-8a1f, 4, 81559\n1, GPU-77c0, 512, 81559\n"
    assert unfit_gpu(fit, 2) == ""
    assert unfit_gpu(fit, 3) == "its nvidia-smi lists 2 GPUs, but the job has 3 there"
    busy = fit.replace("512", "40000")
    assert unfit_gpu(busy, 2).startswith("GPU 1 has 40000 of 81559 MiB in use")
    assert unfit_gpu(busy, 1, ["0"]) == unfit_gpu(busy, 1, ["GPU-8a1f"]) == "", "another job's GPU is not hidden"
    assert unfit_gpu(busy, 1, ["1"]).startswith("GPU 1 has")
    assert "[N/A]" in unfit_gpu("0, GPU-8a1f, [N/A], 81559\n", 1)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle for GPU 0000:3B:00.0' >&2; exit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "Unable to determine the device handle" in "; ".join(problems(wanted(tmp_path, gpus=1)))


def test_where_ranks_are_told_to_meet_they_can(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = mistake(wanted(tmp_path, address="127.0.0.1", port=port))
    assert said.startswith(f"MASTER_PORT is {port}, on which localhost cannot listen (Address already in use)")
    assert mistake(wanted(tmp_path, address="127.0.0.1", port=port)) == ""
    # An address for documentation (RFC 5737), which no machine has.
    assert mistake(wanted(tmp_path, address="192.0.2.1")).startswith("MASTER_ADDR is 192.0.2.1, which is not localhost")
    assert "does not know the address" in mistake(wanted(tmp_path, address="no-such-node.invalid"))
    answer = {"node": "n1", "time": 0.0, "problems": [], "mistake": said}
    with pytest.raises(UserError, match="MASTER_PORT is"):
        judged(json.dumps(answer), ["n1"], 0, 1)


def test_a_node_without_the_interpreter_or_the_packages_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it prints, quotes and all, arrives as an answer."""
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    run = RunDirectory(tmp_path / "run")
    assert sick_nodes(run, ["n2"], 0) == {"n2": "it does not know the address of n2: Name or service not known"}
    monkeypatch.setattr("launcher.nodes.module_command", lambda module: [str(tmp_path / "python"), "-m", module])
    assert sick_nodes(run, ["n2"], 0)["n2"].startswith(f"there is no {tmp_path}/python; name in slurm/cluster.env")
    failing = "import sys; sys.exit('ImportError: \"a\" \\\\ $(b)')"
    monkeypatch.setattr("launcher.nodes.module_command", lambda module: [sys.executable, "-c", failing])
    assert sick_nodes(run, ["n2"], 0) == {"n2": "ImportError: 'a' / $(b)"}


def test_it_imports_no_torch_and_answers_in_a_line(tmp_path: Path) -> None:
    run = "import sys, runpy; runpy.run_module('launcher.node_check', run_name='__main__')"
    code = f"{run}; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(wanted(tmp_path)))],
        capture_output=True,
        text=True,
        env=os.environ | {"SLURMD_NODENAME": "n7"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["node"], answer["problems"]) == ("n7", [])


def test_answers_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    def line(node: str, time: float, *problems: str) -> str:
        return json.dumps({"node": node, "time": time, "problems": problems})

    answers = [
        "noise of a module",
        line("n1", 100.0),
        line("n2", 100.5, "no disk"),
        line("n3", 160.0),
        line("n4", 40.0),
    ]
    found = judged("\n".join(answers), ["n1", "n2", "n3", "n4", "n5"], began=99.0, ended=102.0)
    assert found == {
        "n2": "no disk",
        "n3": "its clock is 58 s off that of n1",
        "n4": "its clock is 59 s off that of n1",
        "n5": "it gave no answer",
    }
    # A check that did not run says nothing of anybody.
    assert judged("srun: error: unrecognized option", ["n1", "n2"], 0, 1) == {}
    assert "says nothing of them" in capsys.readouterr().err


def test_the_check_has_the_jobs_environment_though_sbatch_was_told_to_export_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun takes SLURM_EXPORT_ENV for its own; without a PATH it would find no bash to start."""
    (tmp_path / "srun").write_text(f'#!/bin/sh\necho "$SLURM_EXPORT_ENV" > {tmp_path}/exported\n')
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    assert sick_nodes(RunDirectory(tmp_path / "run"), ["n1"], 0) == {}
    assert (tmp_path / "exported").read_text() == "ALL\n"


def test_a_job_goes_back_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"
    record = tmp_path / "record"
    record.write_text("JobId=7 Requeue=1 Partition=main ReqNodeList=(null) ExcNodeList=(null)")
    for name, does in (
        ("scontrol", f'case $1 in -*) cat {record} ;; show) echo n3 ;; *) echo "$@" >> {calls} ;; esac'),
        ("sinfo", "for n in 1 2 3 4; do echo main n$n; done; echo small n4"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("launcher.nodes.signal.signal", lambda *_: None)
    run = RunDirectory(tmp_path / "run")
    assert Exclusions(run, "7", 2).requeue_without({"n2": "why"})
    assert calls.read_text().splitlines() == ["requeue 7", "update JobId=7 ExcNodeList=n2"]
    assert Exclusions(run, "7", 2).requeue_without({"n1": "why"})
    assert calls.read_text().splitlines()[-1] == "update JobId=7 ExcNodeList=n1,n2"
    assert not Exclusions(run, "7", 2).requeue_without({"n3": "why"})
    # Another job begins to count anew.
    assert Exclusions(run, "8", 2).requeue_without({"n3": "why"})
    assert calls.read_text().splitlines()[-1] == "update JobId=8 ExcNodeList=n3"
    # What sbatch was told to leave out stays out.
    record.write_text(record.read_text().replace("ExcNodeList=(null)", "ExcNodeList=n3"))
    assert Exclusions(run, "6", 2).requeue_without({"n2": "why"})
    assert calls.read_text().splitlines()[-1] == "update JobId=6 ExcNodeList=n2,n3"
    # What Slurm would let wait for ever, or refuses, is not asked of it.
    asked = calls.read_text()
    monkeypatch.setenv("SLURM_JOB_PARTITION", "main")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    assert not Exclusions(run, "9", 2).requeue_without({"n3": "why"})
    assert (
        "job 9 needs 4 nodes, but partition main has 3 without n3 and no other one has enough"
        in capsys.readouterr().err
    )
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    record.write_text("JobId=9 Requeue=1 ReqNodeList=n3 ExcNodeList=(null)")
    assert not Exclusions(run, "9", 2).requeue_without({"n3": "why"})
    assert "job 9 was told by --nodelist to run on n3" in capsys.readouterr().err
    record.write_text("JobId=9 Requeue=0 ReqNodeList=(null) ExcNodeList=(null)")
    assert not Exclusions(run, "9", 2).requeue_without({"n3": "why"})
    assert "submit again with --exclude=n3" in capsys.readouterr().err
    assert calls.read_text() == asked


def test_a_silent_error_names_its_node(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert faulty_nodes(run) == {}
    run.record_outcome("failed", attempt=1, faulty=[{"rank": 3, "node": "n2", "where": "model.blocks.1"}])
    assert faulty_nodes(run) == {"n2": "rank 3 computed wrongly at model.blocks.1"}
    run.record_outcome("running", attempt=2)
    assert faulty_nodes(run) == {}
