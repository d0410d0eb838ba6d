"""A full disk ends a run with exit code 1 and one sentence; with space again it is the run that it would have been."""

import re
from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.complaints import complaint, mounted
from tests.train.forked import run
from tests.train.runs import ledger, metrics

STEPS = ("train.steps=40", "train.micro_batch=8", "logging.interval=1")
SENTENCEPIECE = "data.tokenizer={kind: sentencepiece, train: {vocab_size: 400}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    write_tiny_run(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    done = run("train", "config.yaml", "run.directory=reference", *STEPS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "reference"


@pytest.mark.parametrize(
    ("size", "says", "overrides"),
    [
        ("4k", r"cannot write \S*disk/run/outcome\.json: No space left on device; free some space, then start", ()),
        ("24k", r"cannot write \S*disk/run/(metrics|ledger)\.jsonl: No space left on device; free", ()),
        ("200k", r"cannot save step 40 in \S*disk/run/checkpoints: No space left on device .* 0 are free .*; free", ()),
        ("800k", r"cannot save step 14 in \S*: No space left on device .* untouched; free", ("checkpoint.interval=7",)),
        ("16k", r"cannot write \S*disk/run/tokenizer: No space left on device; free", (SENTENCEPIECE,)),
        ("40k", r"cannot write \S*disk/run/cache/\.evaluation-\S+: No space left on device", ("data.holdout=0.3",)),
    ],
)
def test_a_full_disk(
    folder: Path, tmp_path: Path, reference: Path, size: str, says: str, overrides: tuple[str, ...]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ("train", "config.yaml", f"run.directory={disk}/run", *STEPS, *overrides)
    with mounted(disk, f"size={size}") as place:
        sentence = complaint(run(*command, cwd=folder), code=1)
        assert re.search(says, sentence), sentence
        saved = sorted((place / "run" / "checkpoints").glob("step-*"))
        assert [path.name for path in saved] == (["step-00000007"] if "interval" in "".join(overrides) else [])
        mounted(disk, "").grow()
        again = run(*command, cwd=folder)
        assert again.returncode == 0, again.stderr
        if not overrides or saved:
            assert metrics(disk / "run") == metrics(reference)
            assert ledger(disk / "run") == ledger(reference)


@pytest.mark.parametrize(
    ("largest", "says"),
    [
        (4000, r"cannot write limited-4000/(metrics|ledger)\.jsonl: File too large; free"),
        (100_000, r"cannot save step 40 in limited-100000/checkpoints: File too large"),
    ],
)
def test_a_limit_on_file_sizes(folder: Path, reference: Path, largest: int, says: str) -> None:
    command = ("train", "config.yaml", f"run.directory=limited-{largest}", *STEPS)
    sentence = complaint(run(*command, cwd=folder, largest_file=largest), code=1)
    assert re.search(says, sentence), sentence
    assert run(*command, cwd=folder).returncode == 0
    assert metrics(folder / f"limited-{largest}") == metrics(reference)
