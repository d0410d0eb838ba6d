"""What the check of nodes before a job finds, on this machine and in answers as nodes give them."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.node_check import Wanted, busy_gpu, problems
from launcher.nodes import Exclusions, faulty_nodes, judged
from llmscale.train.run_directory import RunDirectory


def wanted(folder: Path, **changes: object) -> Wanted:
    return Wanted(
        **({"run": str(folder), "mark": "", "address": "localhost", "gpus": False, "free_bytes": 1} | changes)
    )


def test_a_fit_node_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    assert problems(wanted(tmp_path, mark="mark")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mark": "missing"}, "does not see the run folder"),
        ({"address": "no-such-node.invalid"}, "does not know the address of no-such-node.invalid"),
        ({"free_bytes": 1 << 60}, "bytes free there, but a checkpoint takes 1,152,921,504,606,846,976"),
        ({"run": "/proc/1/no-run"}, "cannot write in the run folder"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in "; ".join(problems(wanted(tmp_path, **changes), seconds=0.3))


def test_gpus_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert busy_gpu("0, 4, 81559\n1, 512, 81559\n") == ""
    assert busy_gpu("0, 4, 81559\n1, 40000, 81559\n").startswith("GPU 1 has 40000 of 81559 MiB in use")
    assert "[N/A]" in busy_gpu("0, [N/A], 81559\n")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle for GPU 0000:3B:00.0' >&2; exit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "Unable to determine the device handle" in "; ".join(problems(wanted(tmp_path, gpus=True)))


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


def test_a_job_goes_back_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("launcher.nodes.signal.signal", lambda *_: None)
    run = RunDirectory(tmp_path / "run")
    assert Exclusions(run, "7", 2).requeue_without({"n2": "why"})
    assert calls.read_text().splitlines() == ["requeuehold 7", "update JobId=7 ExcNodeList=n2", "release 7"]
    assert Exclusions(run, "7", 2).requeue_without({"n1": "why"})
    assert calls.read_text().splitlines()[-2] == "update JobId=7 ExcNodeList=n1,n2"
    assert not Exclusions(run, "7", 2).requeue_without({"n3": "why"})
    # Another job begins to count anew.
    assert Exclusions(run, "8", 2).requeue_without({"n3": "why"})
    assert calls.read_text().splitlines()[-2] == "update JobId=8 ExcNodeList=n3"


def test_a_silent_error_names_its_node(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert faulty_nodes(run) == {}
    run.record_outcome("failed", attempt=1, faulty=[{"rank": 3, "node": "n2", "where": "model.blocks.1"}])
    assert faulty_nodes(run) == {"n2": "rank 3 computed wrongly at model.blocks.1"}
    run.record_outcome("running", attempt=2)
    assert faulty_nodes(run) == {}
