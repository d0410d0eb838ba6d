"""bf16 and fp16: exact masters, gradients summed in fp32, losses near those of fp32."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config import RunConfig
from llmscale.distributed.process_group import gather_objects, join, leave, read_world
from llmscale.objectives.loss import build_loss
from llmscale.parity.job import assembled
from llmscale.slices.fragment import Fragment
from tests.engine.cases import (
    GLOBAL_BATCH,
    build,
    case_config,
    global_batch,
    one_step,
    open_engine,
    plain_torch,
    resume_on_rank,
    save_on_rank,
    train_on_rank,
)
from tests.ranks import run_ranks

EVEN: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 2, "model__ffn_size": 72, "model__vocab_multiple": 8
}  # fmt: skip
Whole = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have: products in bf16 depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients_on_rank(configs: list[RunConfig]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For each run: the masters before any step, and the gradients of the first update."""
    join(read_world("cpu"))
    found = []
    for config in configs:
        engine, grid = open_engine(config)
        weights = [replace(each, tensor=each.tensor.clone()) for each in engine.state() if each.kind == "weight"]
        assert all(each.tensor.dtype == torch.float32 for each in weights)
        seen: list[Fragment] = []
        with engine.watched_gradients(seen):
            one_step(engine, grid, 0)
        masters, gradients = (
            {name: value.numpy() for name, value in assembled(itertools.chain(*gather_objects(parts))).items()}
            for parts in (weights, seen)
        )
        found.append((masters, gradients))
    leave()
    return found


def reference(config: RunConfig, micro: int, replicas: int, sums: torch.dtype) -> Whole:
    """The first gradient from micro batches in bf16, which are summed in `sums`, in one process without DeepSpeed."""
    model, loss = build(config).to(torch.bfloat16), build_loss(config.objective, config.model)
    batch = global_batch(0)
    total = {name: torch.zeros(parameter.shape, dtype=sums) for name, parameter in model.named_parameters()}
    for replica in range(replicas):
        own = batch.map(lambda tensor: tensor[replica::replicas])  # noqa: B023 - used at once
        for part in own.split(micro):
            # As the engine: times the replicas, whose average is taken.
            (loss(model, part, None).sum() * (replicas / float(batch.weights.sum()))).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                total[name] += parameter.grad.to(sums)
                parameter.grad = None
    return {name: value.float() / replicas for name, value in total.items()}


def difference(found: Whole, expected: Whole) -> float:
    """|found - expected| / |expected| over all tensors together."""
    assert found.keys() == expected.keys()
    away = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    size = sum(float(value.double().square().sum()) for value in expected.values())
    return (away / size) ** 0.5


@pytest.mark.parametrize("ranks", [1, 2])
def test_masters_are_exact_and_gradients_are_summed_in_fp32(ranks: int) -> None:
    micro = 1
    settings: dict[str, Any] = {"train__micro_batch": micro, "optimizer__clip": 0.0, "engine__dtype": "bf16"}
    cases = [(1, "none"), (2, "none"), (1, "optimizer"), (2, "optimizer"), (3, "none"), (3, "optimizer")]
    configs = [case_config(engine__zero_stage=stage, engine__offload=offload, **settings) for stage, offload in cases]
    exact = {name: parameter.detach() for name, parameter in build(configs[0]).named_parameters()}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in exact.values())
    wide = reference(configs[0], micro, ranks, torch.float32)
    narrow = reference(configs[0], micro, ranks, torch.bfloat16)
    assert difference(narrow, wide) > 1e-3, "sums in bf16 would show"
    for case, both in zip(cases, run_ranks(ranks, gradients_on_rank, configs)[0], strict=True):
        masters, gradients = ({name: torch.from_numpy(value) for name, value in each.items()} for each in both)
        assert masters.keys() == exact.keys()
        assert all(torch.equal(masters[name], exact[name]) for name in exact), case
        assert difference(gradients, wide) < 1e-6, case


def test_bf16_losses_are_near_those_of_fp32_in_one_process() -> None:
    configs = [
        case_config(**EVEN, engine__zero_stage=stage, engine__dtype="bf16", parallel__tensor=2, train__micro_batch=2)
        for stage in (1, 2, 3)
    ]
    expected = plain_torch(case_config(**EVEN))[0]
    for rank in run_ranks(4, train_on_rank, configs):
        for found in rank:
            for (loss, norm), (exact_loss, exact_norm) in zip(found, expected, strict=True):
                assert loss == pytest.approx(exact_loss, rel=1e-2)
                assert norm == pytest.approx(exact_norm, rel=5e-2)
                assert loss != exact_loss
    assert GLOBAL_BATCH == 8


def scaled_on_rank(
    configs: list[RunConfig], steps: int
) -> list[tuple[list[tuple[float, float]], dict[str, Any], bool]]:
    """Of each fp16 run: loss and norm by step, the counters, and whether the masters are still the initial ones."""
    join(read_world("cpu"))
    found = []
    for config in configs:
        engine, grid = open_engine(config)
        before = [each.tensor.clone() for each in engine.state()]
        figures = [one_step(engine, grid, step) for step in range(steps)]
        same = all(torch.equal(old, each.tensor) for old, each in zip(before, engine.state(), strict=True))
        found.append((figures, engine.counters, same))
    leave()
    return found


def test_fp16_trains_near_fp32_and_skips_what_overflows() -> None:
    steps = 5
    cases = [(stage, power) for stage in (1, 2, 3) for power in (10, 24)]
    configs = [
        case_config(
            **EVEN, engine__zero_stage=stage, engine__dtype="fp16", engine__initial_scale_power=power,
            parallel__tensor=2, train__micro_batch=2,
        )
        for stage, power in cases
    ]  # fmt: skip
    exact = plain_torch(case_config(**EVEN), steps)[0]
    for rank in run_ranks(4, scaled_on_rank, configs, steps):
        for (figures, counters, same), (stage, power) in zip(rank, cases, strict=True):
            scaling = counters["loss_scaling"]
            if power == 10:
                assert figures == [pytest.approx(row, rel=1e-2) for row in exact], stage
                assert (counters["steps"], scaling["cur_scale"], same) == (steps, 2**10, False)
            else:
                # 2^24 is beyond fp16: nothing is updated, and the factor falls, by half a step after the first.
                assert all(norm == float("inf") and loss > 0 for loss, norm in figures), stage
                assert (counters["steps"], scaling["cur_scale"], same) == (0, 2 ** (24 - steps + 1), True)


def test_a_resume_goes_on_with_the_factor_of_the_loss(tmp_path: Path) -> None:
    """Or it would skip steps that the run did not."""
    config = case_config(engine__dtype="fp16", engine__initial_scale_power=23, optimizer__lr=0.003)
    expected = run_ranks(2, save_on_rank, config, tmp_path, 5, 5)[0]
    assert any(norm == float("inf") for _, norm in expected)
    assert any(norm < float("inf") for _, norm in expected)
    assert run_ranks(2, resume_on_rank, config, [tmp_path], 5, 5)[0][0] == expected
