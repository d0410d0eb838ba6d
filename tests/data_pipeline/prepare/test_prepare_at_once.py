"""Several calls of `prepare` that do the same at once, of which one is faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.prepare import workers
from data_pipeline.prepare.prepare import Watcher
from tests.data_pipeline.corpora import config, texts, write_jsonl
from tests.data_pipeline.prepare.test_prepare import files_of, run, start


class Overtaken(Watcher):
    """Lets another call of the same do everything while this one is at its n-th sign of life."""

    def __init__(self, overtake: Callable[[], Any], at: int) -> None:
        self.overtake = overtake
        self.left = at

    def stage(self, name: str, size: int) -> Any:
        self.report()
        return self.report

    def report(self, *done: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.overtake()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("deduplication", [None, {}])
@pytest.mark.parametrize("at", [1, 3, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 5, 8))])
def test_a_call_that_is_overtaken_finds_everything_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, deduplication: Any, processes: int
) -> None:
    monkeypatch.setattr(workers, "POLL_SECONDS", 0)
    settings = config(write_jsonl(tmp_path / "data", texts(250)), holdout=0.2, deduplication=deduplication)
    run(settings, tmp_path / "whole")
    out = tmp_path / "out"
    watcher = Overtaken(lambda: run(settings, out), at)
    outcome = run(settings, out, processes=processes, watcher=watcher)
    assert watcher.left <= 0
    assert outcome.meta is not None
    assert "is finished: " in outcome.message
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not (out / "parts").exists()


def test_calls_at_once_all_end_well(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(500)), holdout=0.2)
    run(settings, tmp_path / "whole")
    for out in (tmp_path / "first", tmp_path / "second"):
        calls = [start(settings, out) for _ in range(3)]
        for call in calls:
            _, stderr = call.communicate(timeout=120)
            assert (call.returncode, stderr) == (0, b"")
        assert files_of(out) == files_of(tmp_path / "whole")
        assert not (out / "parts").exists()
