"""The engine against a plain torch loop, on real ranks: gradient scale shows under SGD with active clipping."""

import gc
import os
import shutil
import weakref

import pytest

from llmscale.config import RunConfig
from llmscale.distributed.process_group import join, leave, read_world
from tests.engine.cases import STEPS, case_config, one_step, open_engine, plain_torch, train_on_rank
from tests.ranks import run_ranks

TOLERANCE = 1e-5
"""Relative, of losses and gradient norms over five steps in fp32 on another layout than one process."""

VARIANTS = {
    "adamw": {"optimizer__name": "adamw", "optimizer__lr": 0.003},
    "sgd": {"optimizer__name": "sgd", "optimizer__lr": 0.05},
    "momentum-unclipped": {"optimizer__name": "sgd", "optimizer__lr": 0.05, "optimizer__momentum": 0.9}
    | {"optimizer__clip": 0},
    "adamw-unclipped": {"optimizer__name": "adamw", "optimizer__lr": 0.003, "optimizer__clip": 0},
}
MICRO_BATCHES = {1: (8, 3), 2: (1, 4), 4: (1, 2)}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[tuple[float, float]]]:
    """The plain loop of each variant."""
    found = {name: plain_torch(case_config(**variant))[0] for name, variant in VARIANTS.items()}
    assert all(norm > case_config().optimizer.clip for _, norm in found["sgd"]), "clipping must be active"
    return found


def configs(micro_batch: int, **changes: object) -> list[tuple[str, RunConfig]]:
    """Every variant at every stage."""
    return [
        (name, case_config(engine__zero_stage=stage, train__micro_batch=micro_batch, **variant, **changes))
        for stage in (1, 2, 3)
        for name, variant in VARIANTS.items()
    ]


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_and_norms_equal_plain_torch(ranks: int, expected: dict[str, list[tuple[float, float]]]) -> None:
    first, second = MICRO_BATCHES[ranks]
    cases = configs(first) + [case for case in configs(second) if case[1].optimizer.clip]
    cases.sort(key=lambda case: case[1].engine.zero_stage)
    for rank in run_ranks(ranks, train_on_rank, [config for _, config in cases]):
        for found, (name, config) in zip(rank, cases, strict=True):
            assert len(found) == STEPS
            assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected[name]], (name, config)


def test_same_layout_is_bit_identical() -> None:
    cases = [config for _, config in configs(4)]
    assert run_ranks(2, train_on_rank, cases) == run_ranks(2, train_on_rank, cases)


def test_bf16_follows_fp32(expected: dict[str, list[tuple[float, float]]]) -> None:
    """bf16 has 8 bits of precision; fp32 masters keep the updates that it would round away."""
    cases = [case for case in configs(4, engine__dtype="bf16") if case[1].engine.zero_stage != 2]
    for rank in run_ranks(2, train_on_rank, [config for _, config in cases]):
        for found, (name, config) in zip(rank, cases, strict=True):
            losses, norms = zip(*found, strict=True)
            wanted_losses, wanted_norms = zip(*expected[name], strict=True)
            assert losses == pytest.approx(wanted_losses, rel=0.01), (name, config.engine)
            assert norms == pytest.approx(wanted_norms, rel=0.05), (name, config.engine)
            assert losses != pytest.approx(wanted_losses, rel=TOLERANCE), "this was not bf16"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_layers_train_as_plain_ones(ranks: int, expected: dict[str, list[tuple[float, float]]]) -> None:
    # Every weight of stage 3 is cut, and brought together around each layer.
    cases = configs(4, engine__compile="true", engine__param_persistence_threshold=0)
    for rank in run_ranks(ranks, train_compiled_on_rank, [config for _, config in cases]):
        figures, compiled = rank
        assert compiled, "nothing was compiled"
        for found, (name, config) in zip(figures, cases, strict=True):
            assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected[name]], (name, config)


def train_compiled_on_rank(configs: list[RunConfig]) -> tuple[list[list[tuple[float, float]]], int]:
    """What `train_on_rank` gives, and how many graphs torch compiled for it."""
    from torch._dynamo.utils import counters

    found = train_on_rank(configs)
    return found, counters["stats"]["unique_graphs"]


def train_with_other_numbers(config: RunConfig) -> list[tuple[float, float]]:
    """Train where DeepSpeed has numbered modules and parameters of other engines before, on the first rank only."""
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    if os.environ["RANK"] == "0":
        Init.param_id += 70
        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] += 50
    return train_on_rank([config])[0]


def test_processes_that_trained_other_models_before_may_meet() -> None:
    config = case_config(engine__zero_stage=3)
    expected = plain_torch(config)[0]
    for found in run_ranks(2, train_with_other_numbers, config):
        assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected]


def is_freed_on_rank(config: RunConfig) -> bool:
    join(read_world("cpu"))
    engine, grid = open_engine(config)
    one_step(engine, grid, 0)
    inner = weakref.ref(engine._engine)
    engine.close()
    del engine
    gc.collect()
    leave()
    return inner() is None


@pytest.mark.parametrize("stage", [1, 2])
def test_a_closed_engine_is_freed(stage: int) -> None:
    """At stage 3 DeepSpeed keeps it (docs/log.md)."""
    assert run_ranks(1, is_freed_on_rank, case_config(engine__zero_stage=stage)) == [True]
