"""The doctor on a real Slurm: a job that really gets a signal, and links between the ranks of a step."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


FOLDER = 'it\'s my "runs" ü'


def examine(cluster, *command: str) -> dict[str, dict[str, str]]:
    result = subprocess.run(
        [*command, sys.executable, "-m", "llmscale", "doctor", "--json", "--folder", FOLDER]
        + ([] if command else ["--slurm", "--nproc", "1"]),
        cwd=cluster.project, env=cluster.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}


def test_a_signal_is_delivered_for_real(cluster):
    findings = examine(cluster)
    assert findings["test job"]["status"] == "pass", findings
    assert "ran on n" in findings["test job"]["text"]
    assert findings["signal"]["status"] == "pass"
    assert "exit code 75" in findings["signal"]["text"]
    assert findings["KillWait"]["status"] in ("pass", "warn")
    assert list((cluster.project / FOLDER).iterdir()) == []


def test_within_a_step_the_links_between_its_ranks_are_measured(cluster):
    findings = examine(cluster, "srun", "--nodes=2", "--ntasks-per-node=1")
    assert "between 2 ranks on 2 node(s)" in findings["gloo"]["text"]
