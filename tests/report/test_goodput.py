"""The account of a run's wall time, against sums done by hand."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.records import RecordWriter
from llmscale.report.goodput import ACTIVITIES, TIME_FILE, read_goodput


def spent(**seconds: float) -> dict[str, float]:
    return {**dict.fromkeys(ACTIVITIES, 0.0), **seconds}


def write(run: Path, attempt: int, *rows: dict[str, Any]) -> None:
    with RecordWriter(run / TIME_FILE, attempt) as writer:
        for row in rows:
            writer.write(row)


def begins(at: float, before: float) -> dict[str, Any]:
    return {"step": 0, "time": at + 1, "began": at, "before": before}


def resumes(step: int, at: float, start_up: float) -> dict[str, Any]:
    return {"step": step, "time": at, "seconds": spent(start_up=start_up), "resumes": True}


def test_a_run_without_an_account_has_none(tmp_path):
    assert read_goodput(tmp_path) is None


def test_an_undisturbed_run_is_what_its_last_row_says_and_its_wait_in_the_queue(tmp_path):
    final = spent(start_up=10, compute=70, data=5, checkpoint=3, evaluation=2)
    write(tmp_path, 1, begins(1000, 940), resumes(0, 1010, 10), {"step": 9, "time": 1090, "seconds": final})
    goodput = read_goodput(tmp_path)
    assert goodput is not None
    assert goodput.seconds == {**final, "lost": 0, "waiting": 60}
    assert goodput.wall == 150
    assert goodput.fraction == pytest.approx(70 / 150)
    assert goodput.as_json()["attempts"] == 1


def test_work_after_the_checkpoint_that_is_continued_from_is_lost(tmp_path):
    """Saved at step 5 (t=1050), alive until 1085, waited until 1100, continued from step 5."""
    write(
        tmp_path,
        1,
        begins(1000, 1000),
        resumes(0, 1010, 10),
        {"step": 5, "time": 1050, "seconds": spent(start_up=10, compute=38, checkpoint=2)},
        {"step": 8, "time": 1080, "seconds": spent(start_up=10, compute=67, checkpoint=3)},
    )
    final = spent(start_up=20, compute=30)
    write(tmp_path, 2, begins(1100, 1085), resumes(5, 1120, 20), {"step": 9, "time": 1150, "seconds": final})
    goodput = read_goodput(tmp_path)
    assert goodput is not None
    expected = spent(start_up=30, compute=68, checkpoint=2) | {"lost": 35, "waiting": 15}
    assert goodput.seconds == expected
    assert goodput.wall == 150  # 1000 to 1150, nothing twice and nothing left out


def test_an_attempt_that_began_behind_an_earlier_one_makes_its_work_vain_too(tmp_path):
    """The third attempt found the checkpoints of both damaged and began at 0."""
    write(
        tmp_path,
        1,
        begins(0, 0),
        resumes(0, 10, 10),
        {"step": 5, "time": 50, "seconds": spent(start_up=10, compute=40)},
    )
    write(
        tmp_path,
        2,
        begins(60, 50),
        resumes(5, 70, 10),
        {"step": 9, "time": 100, "seconds": spent(start_up=10, compute=30)},
    )
    write(
        tmp_path,
        3,
        begins(100, 100),
        resumes(0, 110, 10),
        {"step": 1, "time": 120, "seconds": spent(start_up=10, compute=10)},
    )
    goodput = read_goodput(tmp_path)
    assert goodput is not None
    assert goodput.seconds == spent(start_up=30, compute=10) | {"lost": 70, "waiting": 10}
    assert goodput.wall == 120


def test_an_attempt_that_died_before_it_trained_was_start_up(tmp_path):
    write(tmp_path, 1, begins(0, 0))
    write(
        tmp_path,
        2,
        begins(30, 20),
        resumes(0, 40, 10),
        {"step": 1, "time": 50, "seconds": spent(start_up=10, compute=10)},
    )
    goodput = read_goodput(tmp_path)
    assert goodput is not None
    assert goodput.seconds == spent(start_up=30, compute=10) | {"lost": 0, "waiting": 10}


@pytest.mark.parametrize("damage", [{"began": "x"}, {"time": None}, {"before": True}])
def test_rows_of_the_wrong_kind_are_left_out(tmp_path, damage):
    write(tmp_path, 1, begins(0, 0) | damage, resumes(0, 10, 10))
    assert read_goodput(tmp_path) is None
    write(tmp_path, 2, begins(0, 0), resumes(0, 10, 10), {"step": 3, "time": 20, "seconds": {"compute": 1}})
    goodput = read_goodput(tmp_path)
    assert goodput is not None
    assert goodput.wall == 10
