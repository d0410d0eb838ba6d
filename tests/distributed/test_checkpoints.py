"""A checkpoint of any layout goes on on any other: the next losses are those of the run that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig
from llmscale.distributed.process_group import join, leave, read_world
from llmscale.layout.text import parse_layout
from llmscale.parity.ranks import run_ranks
from llmscale.train.resume import restore
from tests.engine.cases import Figures, case_config, one_step, open_engine, plain_torch, save_on_rank

STEPS, AFTER = 3, 3
TOLERANCE = 1e-5
"""Relative, of losses and gradient norms."""
SIZES = {"model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 2, "model__ffn_size": 72,
         "model__vocab_multiple": 8, "optimizer__lr": 0.003}  # fmt: skip
# Tied embeddings, which both ends of a pipeline have; key heads that several ranks have at tp=4.
DENSE = (
    "dp=1", "dp=2,zero=3", "tp=2,sequence_parallel=true", "pp=2", "cp=2,zero=2", "dp=4,zero=2", "tp=4",
    "dp=2,tp=2,zero=3", "pp=2,tp=2", "pp=2,dp=2", "cp=2,tp=2,zero=3", "pp=2,dp=2,tp=2", "dp=4,tp=2,zero=2",
)  # fmt: skip
EXPERTS = ("dp=1", "dp=2,zero=3", "ep=2,dp=2", "ep=4,dp=4,zero=2", "ep=2,dp=2,tp=2", "tp=2,zero=2", "ep=4,dp=8")
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "dense": (SIZES, DENSE),
    "experts": ({**SIZES, "model__experts": "{count: 4, every: 2, capacity_factor: 1.0}"}, EXPERTS),
}
PAIRS = [(model, layout) for model, (_, layouts) in MODELS.items() for layout in layouts]

Saved = dict[str, tuple[Path, list[Figures]]]
"""By layout: its checkpoint, and how the run that wrote it went on by itself."""


def config(model: str, layout: str, **changes: Any) -> RunConfig:
    return parse_layout(layout).of(case_config(**MODELS[model][0], **changes))


def resume_on_rank(config: RunConfig, folders: list[Path]) -> list[list[Figures]]:
    """From each checkpoint in turn, into one engine that has other weights at first, and then those of the last."""
    join(read_world("cpu"))
    engine, grid = open_engine(config)
    found = []
    for folder in folders:
        restore(engine, newest_intact(folder))
        found.append([one_step(engine, grid, step) for step in range(STEPS, STEPS + AFTER)])
    leave()
    return found


def save_all(folder: Path, model: str, layouts: tuple[str, ...]) -> Saved:
    saved = {}
    for number, layout in enumerate(layouts):
        path = folder / f"{model}-{number}"
        ranks = parse_layout(layout).ranks
        saved[layout] = path, run_ranks(ranks, save_on_rank, config(model, layout), path, STEPS, AFTER)[0]
    return saved


def check(saved: Saved, model: str, into: str) -> None:
    folders = [path for path, _ in saved.values()]
    ranks = parse_layout(into).ranks
    for rank in run_ranks(ranks, resume_on_rank, config(model, into, run__seed=99), folders):
        for found, (layout, (_, expected)) in zip(rank, saved.items(), strict=True):
            if layout == into:
                assert found == expected, f"{layout} to itself is not bit-identical"
            assert found == [pytest.approx(figures, rel=TOLERANCE) for figures in expected], (layout, into)


def test_layouts_that_cut_differently(tmp_path: Path) -> None:
    """And the runs themselves are those of plain torch."""
    saved = save_all(tmp_path, "dense", ("dp=2,tp=2,zero=3", "pp=2,tp=2"))
    expected, _ = plain_torch(config("dense", "dp=1"), STEPS + AFTER)
    for _, figures in saved.values():
        assert figures == [pytest.approx(row, rel=TOLERANCE) for row in expected[STEPS:]]
    for into in ("dp=1", "cp=2,zero=2", "pp=2,dp=2"):
        check(saved, "dense", into)
    check(save_all(tmp_path, "experts", ("ep=2,dp=2,tp=2",)), "experts", "dp=2,zero=3")


@pytest.fixture(scope="module")
def saved_by_all(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    folder = tmp_path_factory.mktemp("saved")
    return {model: save_all(folder, model, layouts) for model, (_, layouts) in MODELS.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "into"), PAIRS)
def test_every_layout_to_every_other(saved_by_all: dict[str, Saved], model: str, into: str) -> None:
    check(saved_by_all[model], model, into)
