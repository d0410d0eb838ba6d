"""The doctor's findings on this machine, and on what is wrong with others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmscale.doctor import machine
from llmscale.doctor.finding import Finding
from llmscale.doctor.slurm import examine_settings, examine_slurm

ROOT = Path(__file__).resolve().parents[2]


def only(findings, name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name.startswith(name))
    return found


def test_a_finding_says_what_to_do():
    line = Finding("warn", "GPU 0", "3 of 80 GiB free", "look at nvidia-smi").as_line()
    assert line == "warn  GPU 0: 3 of 80 GiB free; look at nvidia-smi"


def test_packages_are_held_against_what_the_project_needs(monkeypatch):
    monkeypatch.setattr(
        "llmscale.doctor.machine.metadata.requires", lambda name: ["numpy>=1", "click>=8; extra == 'x'"]
    )
    assert only(machine.examine_packages(), "packages").status == "pass"
    monkeypatch.setattr("llmscale.doctor.machine.metadata.requires", lambda name: ["numpy>=999", "no-such-package"])
    found = only(machine.examine_packages(), "packages")
    assert found.status == "fail"
    assert "but >=999 is needed" in found.text
    assert "no-such-package is not installed" in found.text


def test_the_disk_is_tried_out_and_left_as_it_was(tmp_path):
    found = only(machine.examine_folder(tmp_path / "runs"), "disk")
    assert found.status in ("pass", "warn")
    assert "MB/s written and synced" in found.text
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").touch()
    found = only(machine.examine_folder(tmp_path / "file/runs"), "disk")
    assert found.status == "fail"
    assert found.fix


def test_an_interface_that_is_not_there_fails(monkeypatch):
    monkeypatch.setenv("LLMSCALE_INTERFACE", "ib7")
    found = only(machine.examine_network(), "interfaces")
    assert found.status == "fail"
    assert "ib7" in found.text
    assert "lo (127.0.0.1)" in found.text


@pytest.mark.parametrize(
    ("settings", "name", "status"),
    [
        ({"KillWait": "30 sec"}, "KillWait", "pass"),
        ({"KillWait": "5 sec"}, "KillWait", "warn"),
        ({"JobRequeue": "0"}, "JobRequeue", "warn"),
        ({"JobRequeue": "1"}, "JobRequeue", "pass"),
        ({"SlurmdTimeout": "300 sec"}, "SlurmdTimeout", "warn"),
        ({"SlurmdTimeout": "30 sec"}, "SlurmdTimeout", "pass"),
    ],
)
def test_slurms_settings_are_judged_for_runs_that_save_and_go_on(monkeypatch, settings, name, status):
    monkeypatch.delenv("SLURM_WAIT", raising=False)
    found = only(examine_settings(settings), name)
    assert found.status == status
    assert bool(found.fix) == (status == "warn")


def test_ranks_that_wait_without_limit_hear_of_a_dead_node(monkeypatch):
    monkeypatch.setenv("SLURM_WAIT", "0")  # which srun takes for no limit
    found = only(examine_settings({"SlurmdTimeout": "300 sec"}), "SlurmdTimeout")
    assert (found.status, found.text) == ("pass", "a dead node is noticed after 300 s, below SLURM_WAIT (0: no limit)")


def test_a_machine_without_slurm_fails_with_the_commands_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    os.symlink("/usr/bin/which" if Path("/usr/bin/which").exists() else shutil.which("true") or "", tmp_path / "which")
    found = only(examine_slurm(tmp_path, 1), "Slurm")
    assert found.status == "fail"
    assert "sbatch" in found.text


@pytest.mark.slow
def test_the_whole_of_it_on_this_machine(tmp_path):
    command = [sys.executable, "-m", "llmscale", "doctor", "--json", "--nproc", "2", "--folder", str(tmp_path / "runs")]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    findings = {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert result.returncode == int(any(row["status"] == "fail" for row in findings.values())), result.stderr
    assert findings["DeepSpeed"]["status"] in ("pass", "warn")
    assert "between 2 ranks on 1 node(s)" in findings["gloo"]["text"]
    assert findings["clocks"]["status"] == "pass"
