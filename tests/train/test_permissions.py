"""Whole commands under a umask: everything they make has the permissions that it leaves, as `mkdir` and `open` give
them; and links where a run writes are not followed."""

import json
import os
import stat
from pathlib import Path

import pytest

from tests.tiny_run import losses, write_tiny_run
from tests.train.forked import Command, run

SETTINGS = ("train.steps=2", "checkpoint.interval=1", "evaluation.interval=1", "data.holdout=0.1", "run.threads=1")


def _group() -> None:
    os.umask(0o002)


def _private() -> None:
    os.umask(0o027)


def wrong_permissions(folder: Path, umask: int) -> dict[str, str]:
    """What lies below a folder and has other permissions than the umask leaves."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != wanted:
            found[str(path.relative_to(folder))] = f"{mode:o} instead of {wanted:o}"
    return found


@pytest.mark.slow
def test_a_run_export_import_and_prepare_and_a_tracker_that_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write_tiny_run(tmp_path)
    plain = run("train", "config.yaml", *SETTINGS, "run.directory=plain", cwd=tmp_path, prepare=_private)
    assert plain.returncode == 0, plain.stderr
    watched = Command(
        *("train", "config.yaml", *SETTINGS, "run.directory=run", "logging.trackers=[tensorboard]"),
        cwd=tmp_path,
        prepare=_group,
    ).finish()
    assert watched.returncode == 0, watched.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert len(losses(tmp_path / "run")) == 2
    threads = [
        json.loads((tmp_path / name / "summary.json").read_text())["machine"]["threads"] for name in ("run", "plain")
    ]
    assert threads == [1, 1]
    for words in (
        ("export", "run", "hf"),
        ("import", "hf", "back"),
        ("data", "prepare", "config.yaml", "prepared", "--processes", "1"),
        ("data", "tokenizer", "config.yaml", "-o", "tokenizer"),
    ):
        done = run(*words, cwd=tmp_path, prepare=_group)
        assert done.returncode == 0, (words, done.stderr)
    assert wrong_permissions(tmp_path / "plain", 0o027) == {}
    for name in ("run", "hf", "back", "prepared", "tokenizer"):
        assert wrong_permissions(tmp_path / name, 0o002) == {}, name


@pytest.mark.parametrize(
    ("name", "dangling"),
    [(".lock", False), (".lock", True), ("metrics.jsonl", False), ("logs", False), ("logs/rank-00000.log", False)],
)
def test_a_link_where_a_run_writes_is_not_followed(tmp_path: Path, name: str, dangling: bool) -> None:
    write_tiny_run(tmp_path)
    victim = tmp_path / "victim"
    if name == "logs":
        victim.mkdir()
    elif not dangling:
        victim.write_text("precious")
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).symlink_to(victim)
    done = run("train", "config.yaml", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "symbolic link" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(victim.iterdir()) == [] if name == "logs" else victim.exists() != dangling
    assert name == "logs" or dangling or victim.read_text() == "precious"
