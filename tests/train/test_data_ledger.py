"""`llmscale data ledger` on a run that was resumed: what a step saw, checked against the files, and where runs part."""

import re
from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.forked import run

SETTINGS = ("schedule.name=constant", "logging.ledger_snapshot_interval=4")
BATCH, LENGTH = 8, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` made 10 steps at first, went on from step 10 to 14; `other` has another seed."""
    folder = tmp_path_factory.mktemp("data_ledger")
    write_tiny_run(folder)
    for directory, steps, *more in (("run", 10), ("run", 14), ("longer", 16), ("other", 3, "run.seed=1")):
        overrides = (f"run.directory={directory}", f"train.steps={steps}", *SETTINGS, *more)
        done = run("train", "config.yaml", *overrides, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("step", [1, 10, 11, 14])
def test_shows_the_text_that_a_step_saw(folder: Path, step: int) -> None:
    shown = run("data", "ledger", "run", "--step", step, cwd=folder, COLUMNS=500)
    assert (shown.returncode, shown.stderr) == (0, "")
    samples: dict[int, int] = {}
    for line in shown.stdout.splitlines():
        if head := re.fullmatch(rf"step {step}, sample (\d+)", line):
            samples[int(head[1])] = 0
            continue
        found = re.fullmatch(r"  (text-\d\.txt):(\d+), tokens (-?\d+) to (\d+): (.*)", line)
        assert found, line
        path, position, first, last, text = found.groups()
        # One token a byte: the file itself says what the tokens are; -1 and the end of the line are document ends.
        document = (folder / path).read_bytes()[int(position) :].split(b"\n")[0]
        assert text == repr(document[max(0, int(first)) : int(last) + 1].decode())
        samples[max(samples)] += int(last) - int(first) + 1
    assert samples == dict.fromkeys(range((step - 1) * BATCH, step * BATCH), LENGTH + 1)


def test_says_where_two_runs_part(folder: Path) -> None:
    same = run("data", "ledger", "run", "--diff", "longer", cwd=folder)
    assert (same.returncode, same.stdout) == (
        0,
        "run and longer trained on the same samples in every step that both have\n",
    )
    different = run("data", "ledger", "run", "--diff", "other", cwd=folder)
    assert different.returncode == 1
    sums = r"run has samples 0 to 7 with sum \w{16}, other has samples 0 to 7 with sum \w{16}"
    assert re.fullmatch(rf"the runs differ from step 1 on: {sums}\n", different.stdout)


def test_files_that_changed_since_are_refused(folder: Path) -> None:
    path = folder / "text-3.txt"
    text = path.read_text()
    path.write_text(text.replace("a", "b"))
    try:
        shown = run("data", "ledger", "run", "--step", 14, cwd=folder)
    finally:
        path.write_text(text)
    assert shown.returncode == 2
    assert re.fullmatch(r"llmscale: text-3\.txt changed since the run was saved; .*\n", shown.stderr)
