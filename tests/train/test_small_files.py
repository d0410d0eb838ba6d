"""Small files of a run directory with a flipped bit, cut short, emptied or gone: the run goes on as if nothing was."""

import json
import random
import shutil
import zlib
from pathlib import Path

import pytest

from data_pipeline.base.records import extent_of, read_records
from llmscale.data_commands.ledger import ledger_step
from tests.tiny_run import write_tiny_run
from tests.train.forked import run_many
from tests.train.runs import evaluations, ledger, metrics
from tests.train.test_lost_checkpoints import killed

SETTINGS = (
    *("train.steps=9", "checkpoint.interval=3", "data.holdout=0.05", "evaluation.interval=2"),
    *("logging.ledger_snapshot_interval=2", "data.tokenizer={kind: sentencepiece, train: {vocab_size: 300}}"),
)
LARGE = 200_000
"""Bytes above which a file is not small."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`, finished, and `stopped`, killed after step 8."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny_run(folder)
    [done] = run_many([("train", "config.yaml", *SETTINGS, "run.directory=good")], folder)
    assert done.returncode == 0, done.stderr
    killed(folder, "stopped", 8, *SETTINGS)
    return folder


def small_files(run: Path) -> list[str]:
    """Every file that is neither a log nor within a checkpoint."""
    paths = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    return [
        str(path)
        for path in paths
        if path.parts[0] != "logs"
        and path.name != ".lock"
        and not (path.parts[0] == "checkpoints" and path.name != "latest")
        and (run / path).stat().st_size < LARGE
    ]


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def assert_goes_on(folder: Path, names: dict[str, str]) -> None:
    """Runs, by their name, each with the file that is damaged in it, continue at step 6 and are then the run `good`."""
    done = run_many([("train", "config.yaml", *SETTINGS, f"run.directory={name}") for name in names], folder)
    for (name, file), each in zip(names.items(), done, strict=True):
        assert each.returncode == 0, (file, each.stderr)
        assert "continuing at step 6" in each.stderr, (file, each.stderr)
        for read in (metrics, ledger, evaluations):
            found, expected = read(folder / name), read(folder / "good")
            lost = [row for row in expected if row not in found]
            assert all(row in expected for row in found), file
            # A damaged line is lost with its row, or with two where it was the line's end; those come again from 6 on.
            assert len(lost) <= (2 if file.endswith(".jsonl") else 0), (file, lost)
        shutil.rmtree(folder / name)


def damaged(folder: Path, files: list[str], draw: random.Random) -> dict[str, str]:
    names = {}
    for file in files:
        name = f"flip-{draw.randrange(10**9)}"
        shutil.copytree(folder / "stopped", folder / name)
        flip(folder / name / file, draw)
        names[name] = file
    return names


def test_what_is_there(folder: Path) -> None:
    found = {path.rpartition("/")[2] for path in small_files(folder / "stopped")}
    assert found >= {"config.yaml", "outcome.json", "ledger.jsonl", "metrics.jsonl", "latest", "meta.json"}
    assert any(name.startswith("cursor-") for name in found)
    assert any(name.endswith(".model") for name in found)
    assert any(name.endswith(".idx") for name in found)


@pytest.mark.slow
def test_flipped_bits_of_every_small_file(folder: Path) -> None:
    draw = random.Random(0)
    for _ in range(3):
        assert_goes_on(folder, damaged(folder, small_files(folder / "stopped"), draw))


NAMED = {
    "config.yaml": lambda data: data.replace(b"seed: 0", b"seed: 8"),
    "tokenizer/meta.json": lambda data: data.replace(b"300", b"700"),
    "outcome.json": lambda data: data[:10] + b"\xff" + data[11:],
    "ledger.jsonl": lambda data: data.replace(b'"attempt": 1', b'"attempt": 9', 2),
    "metrics.jsonl": lambda data: data.replace(b'"attempt": 1', b'"attempt": 5', 3),
    "checkpoints/latest": lambda data: b"\x80" + data[1:],
}


def test_each_with_the_damage_that_tells_least(folder: Path) -> None:
    names = {}
    for file, damage in NAMED.items():
        name = f"named-{len(names)}"
        shutil.copytree(folder / "stopped", folder / name)
        path = folder / name / file
        before = path.read_bytes()
        path.write_bytes(damage(before))
        assert path.read_bytes() != before, file
        names[name] = file
    for file in ("config.yaml", "tokenizer/meta.json", "outcome.json"):  # and gone
        name = f"named-{len(names)}"
        shutil.copytree(folder / "stopped", folder / name)
        (folder / name / file).unlink()
        names[name] = file
    assert_goes_on(folder, names)


def test_rows_that_are_lost_are_counted_and_said(folder: Path) -> None:
    runs = {name: folder / f"rows-{name}" for name in ("whole", "bits", "zeros", "gone")}
    for run in runs.values():
        shutil.copytree(folder / "stopped", run)
    lines = (runs["bits"] / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    lines[2], lines[4] = lines[2].replace(b'"attempt": 1', b'"attempt": 3'), lines[4][:30] + b"\n"
    (runs["bits"] / "ledger.jsonl").write_bytes(b"".join(lines))
    (runs["zeros"] / "ledger.jsonl").write_bytes(b"\0" * 4096)
    (runs["gone"] / "ledger.jsonl").unlink()
    damaged = {name: extent_of(run / "ledger.jsonl").damaged for name, run in runs.items()}
    assert damaged == {"whole": 0, "bits": 2, "zeros": 1, "gone": 0}
    names = [f"rows-{name}" for name in ("bits", "gone")]
    done = run_many([("train", "config.yaml", *SETTINGS, f"run.directory={name}") for name in names], folder)
    for each, says in zip(
        done, ("has 2 damaged line(s)", "ends at step 0, but a checkpoint is of step 6"), strict=True
    ):
        assert each.returncode == 0, each.stderr
        assert says in each.stderr
    assert "warning" not in done[1].stderr.replace(f"warning: {names[1]}/ledger.jsonl ends", "")


def test_a_digit_of_an_attempt_hides_no_row(tmp_path: Path) -> None:
    """In records of before, whose rows say nothing by which to check them."""
    path = tmp_path / "ledger.jsonl"
    rows = [(1, step) for step in range(1, 9)] + [(2, step) for step in range(6, 12)]
    for damaged_row, attempt in ((3, 7), (3, 0), (10, 1)):
        lines = [
            f'{{"step": {step}, "attempt": {attempt if place == damaged_row else own}}}'
            for place, (own, step) in enumerate(rows)
        ]
        path.write_text("\n".join(lines) + "\n")
        steps = [row["step"] for row in read_records(path)]
        whole = list(range(1, 12))
        assert steps == whole or len(steps) == len(whole) - 1, (damaged_row, attempt, steps)


def test_a_row_that_a_tool_has_written_otherwise_is_the_same(folder: Path) -> None:
    path = folder / "good" / "metrics.jsonl"
    text = path.read_text()
    expected = read_records(path)
    path.write_text("".join(json.dumps(json.loads(line), separators=(",", ":")) + "\n" for line in text.splitlines()))
    assert read_records(path) == expected
    row = json.loads(text.splitlines()[3])
    check = row.pop("check")
    assert int(check, 16) == zlib.crc32(json.dumps(row, sort_keys=True, separators=(",", ":")).encode())
    path.write_text(text)


def test_what_a_step_saw_is_shown_without_config_tokenizer_and_snapshots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    expected = list(ledger_step(Path("good"), 8))
    shutil.copytree(folder / "good", folder / "shown")
    (folder / "shown" / "config.yaml").write_bytes(b"\xff")
    (folder / "shown" / "tokenizer" / "meta.json").write_bytes(b"{")
    for path in (folder / "shown" / "ledger").iterdir():
        flip(path, random.Random(3))
    assert list(ledger_step(Path("shown"), 8)) == expected
