"""What tests of submissions to Slurm share."""

from pathlib import Path

import pytest

from tests.launcher.login_node import LoginNode


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoginNode:
    return LoginNode(tmp_path / "login", monkeypatch)
