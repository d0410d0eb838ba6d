"""A run that dies or is preempted on one layout goes on on another, through the trainer itself."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from llmscale.train.start import PREEMPTED
from tests.distributed.cases import WITHOUT_TARGETS, Case, case_config, run_cases, write_corpus
from tests.train.runs import evaluations, ledger, metrics

STEPS, INTERVAL = 18, 3
SETTINGS: dict[str, Any] = {"train__steps": STEPS, "checkpoint__interval": INTERVAL, "train__micro_batch": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and the uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    assert run_cases(1, [Case(case_config(folder, "whole", **SETTINGS), few_targets=True)]) == [[0]]
    return folder


def first_steps(run: Path) -> list[int]:
    """The step (from 1) that each start of a run began with."""
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "sum" in row]
    return [min(row["step"] for row in rows if row["attempt"] == attempt) for attempt in (1, 2, 3)]


def start(folder: Path, run: str, ranks: int, stage: int, workers: int, stop: Any = None) -> list[list[int]]:
    config = case_config(folder, run, engine__zero_stage=stage, data__workers=workers, **SETTINGS)
    return run_cases(ranks, [Case(config, few_targets=True, stop=stop)])


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param([(4, 2), (1, 3), (2, 1)], id="4-ranks-zero-2-then-1-zero-3-then-2-zero-1"),
        pytest.param([(2, 3), (4, 1), (1, 2)], id="2-ranks-zero-3-then-4-zero-1-then-1-zero-2", marks=pytest.mark.slow),
        pytest.param([(1, 1), (2, 2), (4, 3)], id="1-rank-zero-1-then-2-zero-2-then-4-zero-3", marks=pytest.mark.slow),
    ],
)
def test_killed_then_preempted_on_three_layouts(folder: Path, layouts: list[tuple[int, int]]) -> None:
    run = "-".join(f"{ranks}x{stage}" for ranks, stage in layouts)
    first, second, third = layouts
    # The checkpoint of step 6 was waited for before that of step 9 began.
    with pytest.raises(RuntimeError, match="died"):
        start(folder, run, *first, workers=1, stop=(10, first[0] - 1, signal.SIGKILL))
    assert json.loads((folder / run / "outcome.json").read_text())["outcome"] in ("failed", "running")
    # The signal reaches the last rank only: all must leave together.
    assert start(folder, run, *second, workers=3, stop=(12, second[0] - 1, signal.SIGTERM)) == [[PREEMPTED]] * second[0]
    assert start(folder, run, *third, workers=0) == [[0]] * third[0]
    assert first_steps(folder / run) in ([1, 7, 13], [1, 10, 13])
    assert ledger(folder / run) == ledger(folder / "whole")
    # Rounding differs from the first step on; within five steps of any start it may show in the sixth digit at most.
    expected = [pytest.approx(row, rel=1e-5) for row in metrics(folder / "whole")]
    assert metrics(folder / run) == expected
    assert evaluations(folder / run) == [pytest.approx(row, rel=1e-5) for row in evaluations(folder / "whole")]
    assert metrics(folder / run)[WITHOUT_TARGETS - 1] == (WITHOUT_TARGETS, 0, 0)
    assert json.loads((folder / run / "summary.json").read_text())["skipped_steps"] == 1
