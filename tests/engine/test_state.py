"""Engine state through checkpoints: saved at any number of ranks and any ZeRO stage, loaded at any other."""

import itertools
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint import newest_intact
from tests.engine.cases import Figures, build, case_config, resume_on_rank, save_on_rank
from tests.ranks import run_ranks

Layout = tuple[int, int]
"""Ranks and ZeRO stage."""
LAYOUTS: list[Layout] = list(itertools.product((1, 2, 4), (1, 2, 3)))
STEPS, AFTER = 3, 3


def config(stage: int, **changes: object):
    return case_config(engine__zero_stage=stage, optimizer__lr=0.003, **changes)


Saved = dict[Layout, tuple[Path, list[Figures]]]
"""By layout: its checkpoint, and how the run that wrote it went on by itself."""


def save_all(folder: Path, layouts: list[Layout]) -> Saved:
    saved = {}
    for ranks, stage in layouts:
        path = folder / f"ranks-{ranks}-stage-{stage}"
        saved[ranks, stage] = path, run_ranks(ranks, save_on_rank, config(stage), path, STEPS, AFTER)[0]
    return saved


def check(saved: Saved, into: Layout) -> None:
    ranks, stage = into
    folders = [path for path, _ in saved.values()]
    for rank in run_ranks(ranks, resume_on_rank, config(stage, run__seed=99), folders, STEPS, AFTER):
        for found, (layout, (_, expected)) in zip(rank, saved.items(), strict=True):
            if layout == into:
                assert found == expected, f"{layout} to itself is not bit-identical"
            assert found == [pytest.approx(figures, rel=1e-5) for figures in expected], (layout, into)


def test_a_covering_set_of_layouts(tmp_path: Path) -> None:
    saved = save_all(tmp_path, [(1, 1), (2, 3), (4, 2)])
    for into in ((4, 1), (1, 3), (2, 3)):
        check(saved, into)


@pytest.fixture(scope="module")
def saved_by_all(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_all(tmp_path_factory.mktemp("saved"), LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("into", LAYOUTS)
def test_every_layout_to_every_other(saved_by_all: Saved, into: Layout) -> None:
    check(saved_by_all, into)


def test_saved_weights_are_those_of_the_model_before_any_step(tmp_path: Path) -> None:
    """Against the plain model: names, shapes and values, at a stage that cuts every tensor."""
    run_ranks(2, save_on_rank, config(3), tmp_path, 0, 0)
    checkpoint = newest_intact(tmp_path)
    expected = dict(build(config(3)).named_parameters())
    assert sorted(checkpoint.names) == sorted(expected)
    for name, parameter in expected.items():
        assert torch.equal(checkpoint.full(name), parameter.detach()), name
        assert not checkpoint.full(name, "exp_avg").any()
