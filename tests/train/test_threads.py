"""How many CPU threads a rank uses when the config does not say."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmscale.config import load_config
from llmscale.distributed.process_group import World
from llmscale.train.build import set_threads
from tests.tiny_run import write_tiny_run


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "variable", "ranks", "expected"),
    [(3, "2", 1, 3), (3, None, 1, 3), (None, "2", 1, 2), (None, None, 1, 6), (None, None, 4, 1), (None, None, 9, 1)],
)
def test_the_config_then_the_variable_then_the_usable_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int | None,
    variable: str | None,
    ranks: int,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(int(variable or 5))  # what torch does itself when it is imported with the variable
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    config = load_config(write_tiny_run(tmp_path), [f"run.threads={threads or 'null'}"])
    world = World(0, ranks, 0, ranks, torch.device("cpu"))
    assert set_threads(config, world) == torch.get_num_threads() == expected
