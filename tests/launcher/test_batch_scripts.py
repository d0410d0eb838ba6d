"""slurm/prepare.sbatch, eval.sbatch and sweep.sbatch, with a Python that says what it is asked for."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ODD = 'data.sources.0.paths=["it\'s $(touch pwned)`touch pwned`.txt"]'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "slurm").mkdir()
    for script in (ROOT / "slurm").glob("*.sbatch"):
        (tmp_path / "slurm" / script.name).write_bytes(script.read_bytes())
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nif [ "$1" = -c ]; then exit 0; fi\nprintf "%s\\0" "$@" > given\n')
    python.chmod(0o755)
    (tmp_path / "slurm/cluster.env").write_text(f"export LLMSCALE_PYTHON={python}\nfalse\n")
    return tmp_path


def batch(project: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    return subprocess.run(
        ["bash", f"slurm/{name}.sbatch", *arguments],
        cwd=project, env=variables | {"SLURM_SUBMIT_DIR": str(project)} | environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def given(project: Path) -> list[str]:
    assert not (project / "pwned").exists()
    return (project / "given").read_text().split("\0")[:-1]


def test_data_is_prepared_on_one_node_with_all_its_cpus(project):
    result = batch(project, "prepare", "config.yaml", "out", ODD, SLURM_CPUS_PER_TASK="32")
    assert result.returncode == 0, result.stderr
    assert given(project) == ["-m", "llmscale", "data", "prepare", "--processes", "32", "config.yaml", "out", ODD]


def test_the_elements_of_an_array_share_the_work(project):
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert batch(project, "prepare", "config.yaml", "out", **array).returncode == 0
    assert given(project)[4:] == ["--rank", "3", "--world", "8", "config.yaml", "out"]


def test_an_evaluation_gets_its_arguments_as_they_are(project):
    assert batch(project, "eval", "runs/a b", "--data", ODD).returncode == 0
    assert given(project) == ["-m", "llmscale", "eval", "runs/a b", "--data", ODD]


def test_each_line_of_a_sweep_is_a_run_of_its_own_and_nothing_in_it_is_executed(project):
    quoted = "'" + ODD.replace("'", "'\"'\"'") + "'"
    (project / "lines").write_text(f"optimizer.lr=1e-3\noptimizer.lr=3e-3 {quoted}\n")
    result = batch(project, "sweep", "lines", "config.yaml", "run.seed=7", SLURM_ARRAY_TASK_ID="2")
    assert result.returncode == 0, result.stderr
    words = given(project)
    assert words[:2] == ["-m", "launcher.job"]
    overrides = ["run.directory=runs/{job}-{array_task}", "run.seed=7", "optimizer.lr=3e-3", ODD]
    assert words[3:] == ["config.yaml", *overrides]


@pytest.mark.parametrize("script", ["eval", "prepare"])
def test_settings_neither_get_the_arguments_nor_set_the_shell(project, script):
    """As conda's `activate` takes `$1` for an environment; and what another launch left makes no rank of it."""
    with (project / "slurm/cluster.env").open("a") as file:
        file.write('export GOT="$*"\nset -eu\nfalse || true\n')
    python = project / "python"
    python.write_text(python.read_text() + 'echo "got=$GOT rank=${RANK:-none} world=${WORLD_SIZE:-none}"\n')
    result = batch(project, script, "a b", "c", RANK="1", WORLD_SIZE="2")
    assert result.stdout == "got= rank=none world=none\n", result.stderr
    assert given(project)[-2:] == ["a b", "c"]


def test_a_line_of_a_sweep_with_an_open_quote_is_refused(project):
    (project / "lines").write_text("run.seed=1 'model.layers=2\n")
    result = batch(project, "sweep", "lines", "config.yaml", SLURM_ARRAY_TASK_ID="1")
    assert (result.returncode, result.stderr.count("llmscale:")) == (2, 1)
    assert "line 1 of lines has a quote that is not closed" in result.stderr
    assert not (project / "given").exists()


@pytest.mark.parametrize(
    ("arguments", "task"), [(["lines", "config.yaml"], "9"), (["none", "config.yaml"], "1"), (["lines"], "1"), ([], "")]
)
def test_a_sweep_without_its_line_is_refused_before_anything_starts(project, arguments, task):
    (project / "lines").write_text("optimizer.lr=1e-3\n")
    result = batch(project, "sweep", *arguments, SLURM_ARRAY_TASK_ID=task)
    assert result.returncode == 2
    assert result.stderr.count("llmscale:") == 1
    assert not (project / "given").exists()
