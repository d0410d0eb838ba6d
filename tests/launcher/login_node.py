"""A node from which jobs are submitted, with a stand-in for sbatch that writes down what it was given."""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data_pipeline.base.errors import UserError
from launcher.commands import launch

ROOT = Path(__file__).resolve().parents[2]

SBATCH = """#!/bin/bash
printf '%s\\0' "$@" > "{folder}/arguments"
env -0 > "{folder}/environment"
{end}
"""


class LoginNode:
    """A working directory that is no clone, with a config of a run named run-7 and an sbatch."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "bin").mkdir()
        settings = {"run": {"directory": "runs/run-7"}, "data": {"sources": [{"paths": ["x"]}]}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.answers()

    def answers(self, end: str = "echo 4711") -> None:
        path = self.folder / "bin/sbatch"
        path.write_text(SBATCH.format(folder=self.folder, end=end))
        path.chmod(0o755)

    def settings(self, text: str) -> None:
        (self.folder / "slurm").mkdir(exist_ok=True)
        (self.folder / "slurm/cluster.env").write_text(text)

    def launch(self, *arguments: object) -> str:
        """Stdout of a launch that does well."""
        result = invoke(*arguments)
        assert result.exception is None, result.output
        return result.stdout

    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split("\0")[:-1]

    def environment(self) -> dict[str, str]:
        entries = (self.folder / "environment").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def submitted(self) -> bool:
        return (self.folder / "arguments").exists()


def invoke(*arguments):
    return CliRunner().invoke(launch, ["slurm", *(str(argument) for argument in arguments)])


def assert_refused(login, *arguments, says):
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError), result.output
    for text in says:
        assert text in str(result.exception)
    assert not login.submitted()
