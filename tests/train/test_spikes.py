"""A loss that jumps: the run goes back, skips what it was trained on, and is the same run on any layout ever after."""

import copy
import functools
import json
import os
import random
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipeline.base.records import read_every_record, read_records
from llmscale.checkpoint.manifest import read_manifest
from llmscale.config import parse_config
from llmscale.train.callbacks.spikes import centre_and_deviation
from tests.distributed.cases import Case, run_cases
from tests.tiny_run import losses, write_tiny_run
from tests.train.forked import Finished, run
from tests.train.runs import ledger, metrics

BATCH, STEPS = 8, 60
SETTINGS = (
    f"train.steps={STEPS}",
    "checkpoint.interval=7",
    "optimizer.lr=0.01",
    "schedule.warmup_steps=4",
    "recovery.spikes.window=12",
    "recovery.spikes.threshold=8",
)
FINITE = ("data.order=finite",)


def write_runs(folder: Path, garbage: bool = True) -> None:
    """The tiny run, with one document in its midst, hundreds of tokens long, that no other text is like."""
    write_tiny_run(folder)
    draw = random.Random(3)
    for number in range(8):
        path = folder / f"text-{number}.txt"
        lines = path.read_text().split("\n")[:40]
        if number == 3:
            strange = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(40))
            lines[20] = strange if garbage else lines[20]
        path.write_text("\n".join(lines))


def train(folder: Path, *settings: object) -> Finished:
    done = run("train", "config.yaml", *SETTINGS, *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def decisions(run: Path) -> list[dict[str, Any]]:
    """recoveries.jsonl without what tells one attempt from another."""
    rows = read_every_record(run / "recoveries.jsonl")
    return [{key: value for key, value in row.items() if key not in ("attempt", "checkpoint")} for row in rows]


def ranges(run: Path) -> list[tuple[int, int]]:
    return [(row["first_sample"], row["last_sample"]) for row in decisions(run)]


@pytest.fixture(scope="module", params=[pytest.param("stream", marks=pytest.mark.slow), "finite"])
def recovered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A folder whose `run` met garbage and left it out, and the settings besides `SETTINGS`."""
    folder = tmp_path_factory.mktemp(request.param)
    write_runs(folder)
    order = FINITE if request.param == "finite" else ()
    train(folder, *order)
    return folder, order


def test_the_deviation_is_that_of_numpy() -> None:
    draw = random.Random(0)
    for size in (4, 5, 64, 65):
        values = [draw.gauss(2, 1) for _ in range(size)]
        median, deviation = centre_and_deviation(values)
        assert median == np.median(values)
        assert deviation == pytest.approx(1.4826 * np.median(np.abs(np.array(values) - np.median(values))))
    assert centre_and_deviation([2.0] * 8) == (2.0, 0.01)


def test_a_spike_is_left_out(recovered: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    """The bar: within 2 % of a run whose text has no garbage."""
    folder, order = recovered
    write_runs(tmp_path, garbage=False)
    train(tmp_path, *order)
    assert not (tmp_path / "run/recoveries.jsonl").exists()
    clean, found = ([loss for _, loss in sorted(losses(each / "run").items())] for each in (tmp_path, folder))
    assert decisions(folder / "run")
    assert len(found) == STEPS
    assert statistics.mean(found[-10:]) == pytest.approx(statistics.mean(clean[-10:]), rel=0.02)
    assert max(found[15:]) < 1.05 * max(clean[15:])
    train(folder, *order, "recovery.spikes=null", "run.directory=without")
    without = [loss for _, loss in sorted(losses(folder / "without").items())]
    assert max(without[15:]) > 1.05 * max(clean[15:])


def test_every_decision_is_what_its_figures_say(recovered: tuple[Path, tuple[str, ...]]) -> None:
    """Looked at again with numpy, from the metrics of every attempt; the sums of the ledger are those of the attempt
    that saw the samples."""
    run_folder = recovered[0] / "run"
    for row in read_every_record(run_folder / "recoveries.jsonl"):
        own = [each for each in read_every_record(run_folder / "metrics.jsonl") if each["attempt"] <= row["attempt"]]
        by_step = {each["step"]: each["loss"] for each in own if "loss" in each}
        before = np.array([by_step[step] for step in range(row["step"] - 12, row["step"])])
        median = np.median(before)
        deviation = max(0.01, 1.4826 * np.median(np.abs(before - median)))
        assert row["score"] == pytest.approx((row["loss"] - median) / deviation)
        assert row["score"] > 8
        [seen] = row["ledger"]
        rows = read_every_record(run_folder / "ledger.jsonl")
        [same] = [each for each in rows if each.get("sum") == seen["sum"]]
        assert (same["step"], same["first_sample"], same["attempt"]) == (
            row["step"], row["first_sample"], row["attempt"],
        )  # fmt: skip


def test_the_ledger_says_what_was_skipped(recovered: tuple[Path, tuple[str, ...]]) -> None:
    run_folder = recovered[0] / "run"
    rows = read_records(run_folder / "ledger.jsonl")
    skipped = [(part["first_sample"], part["last_sample"]) for row in rows for part in row.get("skipped", [])]
    assert skipped == ranges(run_folder)
    trained = [range(row["first_sample"], row["last_sample"] + 1) for row in rows]
    left_out = [range(first, last + 1) for first, last in skipped]
    everything = sorted(sample for part in [*trained, *left_out] for sample in part)
    assert everything == list(range(BATCH * (STEPS + len(skipped))))
    sums = {part["first_sample"]: part["sum"] for row in rows for part in row.get("skipped", [])}
    for row in decisions(run_folder):
        assert sums[row["first_sample"]] == row["ledger"][0]["sum"]
    manifest = read_manifest(max((run_folder / "checkpoints").glob("step-*")))
    assert [row[:2] for row in manifest.progress["skips"]] == [list(each) for each in ranges(run_folder)]
    shown = run("data", "ledger", "run", "--step", STEPS, cwd=recovered[0])
    assert (shown.returncode, shown.stdout.count(f"step {STEPS}, sample")) == (0, BATCH), shown.stderr


def leave_out(numbers: list[int]) -> None:
    """Read and throw away some batches, in the place where the loader gives them out: the recovery without it."""
    from data_pipeline.loader import TrainLoader

    taken, batches = TrainLoader.take, {number // BATCH for number in numbers}

    def take(loader: TrainLoader, count: int) -> Any:
        while loader.cursor()["next_sample"] // BATCH in batches:
            taken(loader, count)
        return taken(loader, count)

    TrainLoader.take = take  # type: ignore[method-assign]


def test_it_is_the_run_on_the_other_samples(recovered: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    """To the bit a run that never saw them, at any interval of checkpoints."""
    folder, order = recovered
    write_runs(tmp_path)
    firsts = [first for first, _ in ranges(folder / "run")]
    plain = ("recovery.spikes=null", "checkpoint.interval=0")
    done = run(
        "train", "config.yaml", *SETTINGS, *order, *plain, cwd=tmp_path, prepare=functools.partial(leave_out, firsts)
    )
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run") == metrics(folder / "run")
    train(folder, *order, "checkpoint.interval=0", "run.directory=rare")
    assert metrics(folder / "rare") == metrics(folder / "run")
    assert ledger(folder / "rare") == ledger(folder / "run")
    assert decisions(folder / "rare") == decisions(folder / "run")


def die_deciding(when: str, number: int) -> None:
    """Kill this process when the run decides for the `number`th time, before or after that is on record."""
    from llmscale.train.callbacks import spikes

    append, made = spikes.append_decision, []

    def record(*arguments: Any) -> None:
        made.append(0)
        if len(made) == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        append(*arguments)
        if len(made) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    spikes.append_decision = record


def test_killed_while_it_decides(recovered: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    folder, order = recovered
    write_runs(tmp_path)
    for when, number in (("before", 1), ("after", 1), ("after", 1)):
        dead = run(
            *("train", "config.yaml", *SETTINGS, *order),
            cwd=tmp_path,
            prepare=functools.partial(die_deciding, when, number),
        )
        assert dead.returncode == -signal.SIGKILL, dead.stderr
    train(tmp_path, *order)
    for same in (metrics, ledger, decisions):
        assert same(tmp_path / "run") == same(folder / "run")


def test_what_was_decided_stays(recovered: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    """Also where the settings say something else by then, or the file is gone and only checkpoints know."""
    folder, order = recovered
    write_runs(tmp_path)
    dead = run(
        *("train", "config.yaml", *SETTINGS, *order),
        cwd=tmp_path,
        prepare=functools.partial(die_deciding, "after", len(decisions(folder / "run"))),
    )
    assert dead.returncode == -signal.SIGKILL
    short = ("train.steps=60", "recovery.spikes=null")
    shutil.copytree(tmp_path, tmp_path / "copy")
    train(tmp_path, *order, *short)
    assert ledger(tmp_path / "run") == ledger(folder / "run")
    assert metrics(tmp_path / "run") == metrics(folder / "run")
    # Checkpoints carry the decisions of before: what is left of the run after the last of them is done again.
    (tmp_path / "copy/run/recoveries.jsonl").unlink()
    train(tmp_path / "copy", *order)
    assert metrics(tmp_path / "copy/run") == metrics(folder / "run")


LAYOUTS = {
    (): [("engine.zero_stage=2", "data.workers=2"), ("parallel.pipeline=2",)],
    FINITE: [("engine.zero_stage=3", "train.micro_batch=1"), ("parallel.tensor=2",), ("parallel.sequence=2",)],
}


@pytest.mark.slow
def test_every_layout_decides_alike(recovered: tuple[Path, tuple[str, ...]]) -> None:
    folder, order = recovered
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    raw["data"]["sources"][0]["paths"] = [str(folder / "text-*.txt")]
    cases = []
    for number, layout in enumerate(LAYOUTS[order]):
        where = f"run.directory={json.dumps(str(folder / f'layout-{number}'))}"
        cases.append(Case(parse_config(copy.deepcopy(raw), [*SETTINGS, *order, *layout, where])))
    assert run_cases(2, cases) == [[0] * len(cases)] * 2
    for number, layout in enumerate(LAYOUTS[order]):
        found = folder / f"layout-{number}"
        assert ledger(found) == ledger(folder / "run"), layout
        assert ranges(found) == ranges(folder / "run"), layout
        expected = [loss for _, loss, _ in metrics(folder / "run")]
        assert [loss for _, loss, _ in metrics(found)] == pytest.approx(expected, rel=2e-4), layout


@pytest.mark.slow
def test_steps_around_the_spike_are_skipped_too(tmp_path: Path) -> None:
    write_runs(tmp_path)
    around = ("recovery.spikes.skip_before=2", "recovery.spikes.skip_after=3")
    train(tmp_path, *around, "checkpoint.interval=3")
    first = decisions(tmp_path / "run")[0]
    spike = BATCH * (first["step"] - 1)
    assert ranges(tmp_path / "run")[0] == (spike - 2 * BATCH, spike + 4 * BATCH - 1)
    assert [part["first_sample"] for part in first["ledger"]] == [spike - 2 * BATCH, spike - BATCH, spike]
    train(tmp_path, *around, "checkpoint.interval=0", "run.directory=rare")
    assert ledger(tmp_path / "rare") == ledger(tmp_path / "run")
    assert metrics(tmp_path / "rare") == metrics(tmp_path / "run")
    refused = run(
        *("train", "config.yaml", *SETTINGS, *around, "checkpoint.interval=1", "checkpoint.keep=1"),
        *("run.directory=new",),
        cwd=tmp_path,
    )
    assert (refused.returncode, refused.stderr.count("Traceback")) == (2, 0), refused.stderr
    assert "raise checkpoint.keep (1)" in refused.stderr.splitlines()[-1]


def test_an_end_to_going_back(tmp_path: Path) -> None:
    """A threshold that any step passes: after so many tries of one step the run says so, and is not done."""
    write_runs(tmp_path)
    done = run("train", "config.yaml", *SETTINGS, "recovery.spikes.threshold=0.001", "recovery.spikes.tries=2",
               "schedule.warmup_steps=0", "optimizer.lr=0.00001", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "after 2 times that the run went back" in last
    assert last.startswith("llmscale: the loss of step ")
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run/outcome.json").read_text())["outcome"] == "failed"
    steps = [row["step"] for row in decisions(tmp_path / "run")]
    assert max(map(steps.count, steps)) == 2


def test_epochs_end_with_the_data(tmp_path: Path) -> None:
    """What is skipped of a finite set is not made up for by other samples: the last steps have none."""
    write_runs(tmp_path)
    done = train(tmp_path, *FINITE, "train.epochs=1")
    assert "Traceback" not in done.stderr
    rows = read_records(tmp_path / "run/metrics.jsonl")
    assert rows[-1]["skipped_steps"] == len(decisions(tmp_path / "run")) > 0
