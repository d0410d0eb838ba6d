"""The one sentence with which a command ends that was given something wrong, and that nothing else changed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.forked import Finished, run
from tests.train.runs import files_of

PROGRESS = re.compile(
    r"step \d+/\d+  |\S+: (starting|continuing at step)|skipping checkpoint |training a \w+ tokenizer of \d+ tokens"
)


def complaint(done: Finished, code: int = 2) -> str:
    """The one sentence that a command ended with."""
    assert done.returncode == code, done.stderr
    *before, sentence = done.stderr.splitlines()
    assert all(PROGRESS.match(line) for line in before), done.stderr
    assert sentence.startswith("llmscale: ")
    return sentence


def assert_refused(folder: Path, says: str, *arguments: object, **environment: object) -> None:
    before = files_of(folder)
    sentence = complaint(run(*arguments, cwd=folder, **environment))
    assert re.search(says, sentence), sentence
    after = files_of(folder)
    assert {path: after.get(path) for path in before} == before


class mounted:
    """A small file system of its own, for root; the test is skipped where none can be mounted."""

    def __init__(self, place: Path, options: str) -> None:
        self.place, self.options = place, options

    def __enter__(self) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.place)]
        if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("cannot mount a file system here")
        return self.place

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=32m", str(self.place)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.place)], check=True)
