"""The commands of `llmscale launch`, as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from launcher.commands import launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"run": {"directory": str(tmp_path / "run")}, "data": {"sources": [{"paths": ["x"]}]}})
    )
    return path


def invoke(*arguments):
    return CliRunner().invoke(launch, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["local", "--nproc", "2"],
        ["accelerate", "--config-file", str(ROOT / "configs/accelerate/cpu.yaml")],
        ["slurm", "--nodes", "1", "--ntasks-per-node", "1"],
    ],
)
def test_a_mistake_in_the_config_is_told_before_anything_starts(config, arguments, monkeypatch):
    def forbidden(*args, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", forbidden)
    monkeypatch.setattr(os, "execv", forbidden)
    result = invoke(*arguments, config, "train.stepz=3")
    assert isinstance(result.exception, UserError), result.output
    assert "train.stepz" in str(result.exception)
    assert "train.steps" in str(result.exception)
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("arguments", [["local", "--nproc", "7"], ["slurm", "--nodes", "7", "--ntasks-per-node", "1"]])
def test_a_batch_that_the_ranks_do_not_divide_is_refused_before_anything_starts(config, arguments):
    result = invoke(*arguments, config, "train.global_batch=32")
    assert isinstance(result.exception, UserError), result.output
    assert "train.global_batch (32) must be a multiple of the data-parallel size (7)" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["local", "--nproc", "4"],
        ["accelerate", "--config-file", "four.yaml"],
        ["slurm", "--nodes", "2", "--ntasks-per-node", "2"],
    ],
)
def test_an_illegal_layout_is_refused_before_anything_starts(config, arguments, monkeypatch, tmp_path):
    def forbidden(*args, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", forbidden)
    monkeypatch.setattr(os, "execv", forbidden)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "four.yaml").write_text("num_processes: 4\n")
    result = invoke(*arguments, config, "parallel.tensor=4", "model.kv_heads=6")
    assert isinstance(result.exception, UserError), result.output
    assert "parallel.tensor (4) must divide model.kv_heads (6)" in str(result.exception)
    assert "use parallel.tensor=2" in str(result.exception)
    result = invoke(*arguments, config, "parallel.tensor=2", "parallel.data=3")
    assert isinstance(result.exception, UserError), result.output
    assert "the run has 4 ranks, but" in str(result.exception)
    assert "parallel.data (3) x parallel.context (1) x parallel.tensor (2) = 6" in str(result.exception)
    assert not (config.parent / "run").exists()


def test_a_refused_layout_ends_the_command_with_code_2(config):
    command = [sys.executable, "-m", "llmscale", "launch", "local", "--nproc", "4", str(config), "parallel.tensor=3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "the run has 4 ranks, which is no multiple of" in result.stderr
    assert not (config.parent / "run").exists()


def test_accelerate_without_a_number_of_ranks_checks_what_has_nothing_to_do_with_it(config, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    (tmp_path / "any.yaml").write_text("use_cpu: true\n")
    result = invoke("accelerate", "--config-file", tmp_path / "any.yaml", config, "data.sequence_length=2000")
    assert isinstance(result.exception, UserError)
    assert "data.sequence_length (2000 tokens) exceeds" in str(result.exception)
    assert not started
    invoke("accelerate", "--config-file", tmp_path / "any.yaml", config)
    assert len(started) == 1


def test_an_accelerate_config_that_is_no_yaml_is_named(config, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [\n")
    result = invoke("accelerate", "--config-file", tmp_path / "broken.yaml", config)
    assert isinstance(result.exception, UserError)
    assert "broken.yaml: it is not valid YAML" in str(result.exception)


def test_a_missing_accelerate_config_is_named(config):
    result = invoke("accelerate", "--config-file", "nowhere.yaml", config)
    assert isinstance(result.exception, UserError)
    assert "nowhere.yaml" in str(result.exception)


def test_a_run_directory_that_cannot_be_made_is_the_users_mistake(config, tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("local", "--nproc", "1", config, f"run.directory={tmp_path}/file/run")
    assert isinstance(result.exception, UserError)
    assert f"{tmp_path}/file/run" in str(result.exception)


def test_the_commands_cost_next_to_nothing_to_import():
    """Every `llmscale` command pays for this import."""
    script = (
        "import sys, json\nimport click\nbefore = set(sys.modules)\nimport launcher.commands\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(result.stdout) == ["launcher", "launcher.commands"]
