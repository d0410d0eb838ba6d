"""A preemption signal in any phase of a run, and more of them after it: the exit code is 75, and nothing is lost."""

import importlib
import json
import os
import pty
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, run
from tests.train.runs import evaluations, ledger, metrics

SETTINGS = (
    *("train.steps=6", "checkpoint.interval=2", "data.holdout=0.05", "evaluation.interval=2"),
    "evaluation.baselines=true",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    write_tiny_run(folder)
    done = run("train", "config.yaml", *SETTINGS, "run.directory=good", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def wrap(name: str, before: Callable[[int], object]) -> None:
    """Call `before` with the number of the call, from 1, ahead of each call of `module:attribute`."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, last), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        before(calls)
        return original(*arguments, **options)

    setattr(owner, last, wrapped)


def signalled(name: str, call: int, numbers: tuple[int, ...], pause: float) -> None:
    """Get signals, more than a second apart, in a call of a function that then takes `pause` seconds longer."""

    def before(count: int) -> None:
        if count != call:
            return
        for place, number in enumerate(numbers):
            if place:
                time.sleep(1.2)
            os.kill(os.getpid(), number)
        time.sleep(pause)

    wrap(name, before)


ONE, TWO = (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)
PHASES: dict[str, tuple[str, int, tuple[int, ...], float]] = {
    "the first compilation": ("llmscale.engine.engine:Engine.train_step", 1, ONE, 60),
    "saving, twice": ("llmscale.train.callbacks.checkpoints:Checkpointer.on_end", 1, TWO, 0.2),
    "the report at the end": ("llmscale.train.start:finish", 1, ONE, 60),
    "a step, by a closed terminal": ("llmscale.engine.engine:Engine.train_step", 4, (signal.SIGHUP,), 0.2),
}
MORE = {
    "making the tokenizer": ("llmscale.train.build:build_tokenizer", 1, ONE, 60),
    "the evaluation set": ("llmscale.train.build:build_evaluation", 1, ONE, 60),
    "opening the data": ("llmscale.train.build:build_loader", 1, ONE, 60),
    "building the model": ("llmscale.train.setup:make_engine", 1, (signal.SIGHUP,), 60),
    "an evaluation": ("llmscale.train.callbacks.evaluation:evaluate", 1, (signal.SIGUSR1,), 0.2),
    "the final evaluation": ("llmscale.train.callbacks.evaluation:evaluate", 3, ONE, 0.2),
    "the final evaluation, twice": ("llmscale.train.callbacks.evaluation:evaluate", 3, TWO, 60),
    "writing": ("llmscale.checkpoint.writer:CheckpointWriter._write", 2, ONE, 0.2),
    "the baselines": ("llmscale.train.finish:_baselines", 1, TWO, 60),
    "the last words": ("llmscale.train.start:leave", 1, TWO, 0.2),
}


def assert_ends_and_continues(folder: Path, phase: str, before: Callable[[], object], code: int = 75) -> None:
    """It ends with `code` before the phase does, says how, and the same command makes the run `good` of it."""
    name = phase.replace(" ", "-").replace(",", "")
    command = ("train", "config.yaml", *SETTINGS, f"run.directory={name}")
    done = Command(*command, cwd=folder, prepare=before).finish(
        timeout=50
    )  # less than what a phase takes that no signal ends
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    outcome = json.loads((folder / name / "outcome.json").read_text())["outcome"]
    assert outcome == ("preempted" if code else "done"), done.stderr
    again = run(*command, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert metrics(folder / name) == metrics(folder / "good")
    assert ledger(folder / name) == ledger(folder / "good")
    assert evaluations(folder / name) == evaluations(folder / "good")


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in(folder: Path, phase: str) -> None:
    assert_ends_and_continues(folder, phase, partial(signalled, *PHASES[phase]))


@pytest.mark.slow
@pytest.mark.parametrize("phase", MORE)
def test_more_phases(folder: Path, phase: str) -> None:
    code = 0 if phase == "the last words" else 75
    assert_ends_and_continues(folder, phase, partial(signalled, *MORE[phase]), code)


def late_signals() -> None:
    """Be preempted, and get signals again once the command has returned."""
    signalled("llmscale.engine.engine:Engine.train_step", 3, ONE, 0.2)

    def at_exit() -> None:
        time.sleep(1.2)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
        time.sleep(0.2)

    util.Finalize(None, at_exit, exitpriority=1)


def test_signals_after_the_last_word_change_no_exit_code(folder: Path) -> None:
    assert_ends_and_continues(folder, "late", late_signals)


def closed_terminal() -> None:
    """Have a terminal, which is closed in step 3."""
    master, slave = pty.openpty()
    for number in (1, 2):
        os.dup2(slave, number)
    os.close(slave)

    def before(count: int) -> None:
        if count == 3:
            os.close(master)
            os.kill(os.getpid(), signal.SIGHUP)

    wrap("llmscale.engine.engine:Engine.train_step", before)


def test_a_terminal_that_is_closed(folder: Path) -> None:
    assert_ends_and_continues(folder, "closed", closed_terminal)


def test_nohup_stays_deaf(folder: Path) -> None:
    done = run("train", "config.yaml", *SETTINGS, "run.directory=nohup", cwd=folder, prepare=_ignore_hangup)
    assert done.returncode == 0, done.stderr


def _ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signalled("llmscale.engine.engine:Engine.train_step", 2, (signal.SIGHUP,), 0.1)


def test_nobody_reads(folder: Path) -> None:
    """`llmscale train 2>&1 | head -1` trains on."""
    assert_ends_and_continues(folder, "unread", _unread, code=0)


def _unread() -> None:
    reading, writing = os.pipe()
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(reading)
