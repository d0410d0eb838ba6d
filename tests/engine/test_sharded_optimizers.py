"""Adafactor, Lion and Muon under ZeRO on real ranks, and their state from one layout into another."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig
from llmscale.distributed.process_group import gather_objects, join, leave, read_world
from llmscale.engine import engine as engine_module
from llmscale.engine.optimizers import Part
from llmscale.engine.optimizers.adafactor import Adafactor
from llmscale.engine.optimizers.muon import Muon
from llmscale.slices.tensor_slice import TensorSlice
from tests.engine.cases import (
    Figures,
    case_config,
    one_step,
    open_engine,
    plain_torch,
    resume_all_on_rank,
    save_all_on_rank,
)
from tests.engine.references import (
    VARIANTS,
    Weights,
    assert_same_weights,
    reference_optimizers,
    single_precision_muon,
    weights,
)
from tests.ranks import run_ranks

STEPS, AFTER, TOLERANCE = 5, 4, 1e-5
WITH_STATE = ("lion", "adafactor-momentum", "muon")
"""Variants that together keep every kind of state."""
SMALL_GROUPS = 1500
"""Elements of a sub-group of stage 3: a parameter group then is several partitions."""


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[list[Figures], Weights]]:
    """The reference's figures and weights on whole parameters."""
    found = {}
    for name, variant in VARIANTS.items():
        with single_precision_muon():
            figures, model = plain_torch(case_config(**variant), STEPS, reference_optimizers)
        found[name] = figures, weights(model)
    return found


def train_on_rank(
    configs: list[RunConfig], sub_group: int | None = None, steps: int = STEPS
) -> list[tuple[list[Figures], Any]]:
    """Figures of runs one after the other, and on the first rank their weights."""
    plain = engine_module.deepspeed_config

    def with_sub_groups(*arguments: Any) -> dict[str, Any]:
        settings = plain(*arguments)
        settings["zero_optimization"] |= {"sub_group_size": sub_group} if sub_group else {}
        return settings

    join(read_world("cpu"))
    found = []
    with mock.patch.object(engine_module, "deepspeed_config", with_sub_groups):
        for config in configs:
            engine, grid = open_engine(config)
            figures = [one_step(engine, grid, step) for step in range(steps)]
            own = [fragment for fragment in engine.state() if fragment.kind == "weight"]
            pieces = [(f.name, f.slice.shape, f.slice.start, f.tensor.numpy().copy()) for f in own]
            everywhere = [piece for rank in gather_objects(pieces) for piece in rank]
            found.append((figures, everywhere if grid.rank == 0 else None))
            if sub_group:
                assert len(engine._engine.optimizer.fp16_groups) > len(engine._engine.optimizer.param_groups)
    leave()
    return found


def whole(pieces: list[tuple[str, tuple[int, ...], int, np.ndarray]]) -> Weights:
    """Tensors from the flat pieces of all ranks."""
    found = {name: torch.full(shape, float("nan")) for name, shape, _, _ in pieces}
    for name, _, start, values in pieces:
        found[name].view(-1)[start : start + values.size] = torch.from_numpy(values)
    return found


def check(results: list[list[tuple[list[Figures], Any]]], names: list[str], expected: Any) -> None:
    for rank, found in enumerate(results):
        for (figures, pieces), name in zip(found, names, strict=True):
            wanted, trained = expected[name]
            assert figures == [pytest.approx(row, rel=TOLERANCE) for row in wanted], (rank, name)
            if rank == 0:
                assert_same_weights(whole(pieces), trained)


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_stage_equals_the_reference(ranks: int, expected: Any) -> None:
    names = [name for _ in (1, 2, 3) for name in VARIANTS]
    configs = [case_config(engine__zero_stage=stage, **variant) for stage in (1, 2, 3) for variant in VARIANTS.values()]
    check(run_ranks(ranks, train_on_rank, configs), names, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_twenty_steps_follow_the_reference(stage: int) -> None:
    configs = [case_config(engine__zero_stage=stage, **variant) for variant in VARIANTS.values()]
    with single_precision_muon():
        wanted = [plain_torch(config, 20, reference_optimizers)[0] for config in configs]
    for rank in run_ranks(4, train_on_rank, configs, None, 20):
        for (figures, _), expected in zip(rank, wanted, strict=True):
            assert figures == [pytest.approx(row, rel=1e-4) for row in expected]


def test_sub_groups_of_stage_3_equal_the_reference(expected: Any) -> None:
    names = ["adafactor", "muon"]
    configs = [case_config(engine__zero_stage=3, **VARIANTS[name]) for name in names]
    check(run_ranks(2, train_on_rank, configs, SMALL_GROUPS), names, expected)


STACKS = [(3, 4, 5), (2, 7), (1, 1), (5, 3, 2), (6, 4)]
CUTS = [0, 9, 9, 70, 108, 129]
"""Where the ranks' parts of the stacks begin: within rows, and one rank has nothing at all."""


def update_stacks_on_rank(cuts: list[int]) -> None:
    """Three updates of a flat partition that ends anywhere, against updates of the whole tensors."""
    join(read_world("cpu"))
    rank = torch.distributed.get_rank()
    first, last = cuts[rank], cuts[rank + 1]
    for kind in (Adafactor, Muon):
        generator = torch.Generator().manual_seed(5)
        options = {"orthogonal": True, "arithmetic": torch.float32} if kind is Muon else {"momentum": 0.5}
        own = {key: options.pop(key) for key in ("orthogonal",) if key in options}
        whole = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in STACKS]
        partition = torch.nn.Parameter(torch.cat([tensor.detach().view(-1) for tensor in whole])[first:last].clone())
        reference = kind([{"params": whole, **own}], lr=0.1, weight_decay=0.1, **options)
        sharded = kind([{"params": [partition], **own}], lr=0.1, weight_decay=0.1, **options)
        sharded.bind(partition, parts_of_stacks(first, last), torch.distributed.group.WORLD)
        for _ in range(3):
            for tensor in whole:
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            partition.grad = torch.cat([tensor.grad.view(-1) for tensor in whole])[first:last].clone()
            reference.step()
            sharded.step()
        expected = torch.cat([tensor.detach().view(-1) for tensor in whole])[first:last]
        torch.testing.assert_close(partition.detach(), expected, rtol=1e-5, atol=1e-5)
    leave()


def parts_of_stacks(first: int, last: int) -> list[Part]:
    """What elements [first, last) of all stacks one after the other hold of each."""
    parts, place = [], 0
    for shape in STACKS:
        size = math.prod(shape)
        start, end = max(first, place), min(last, place + size)
        whole = TensorSlice.whole(shape)
        if start < end:
            parts.append(Part(str(shape), whole.flat_range(start - place, end - place), start - first))
        else:
            parts.append(Part(str(shape), whole.flat_range(0, 0), 0))
        place += size
    return parts


def test_stacks_of_matrices_may_be_cut_anywhere() -> None:
    assert CUTS[-1] == sum(math.prod(shape) for shape in STACKS)
    run_ranks(len(CUTS) - 1, update_stacks_on_rank, CUTS)


def test_muon_in_bf16_follows_fp32(expected: Any) -> None:
    config = case_config(engine__dtype="bf16", engine__zero_stage=3, **VARIANTS["muon"])
    for [(figures, _)] in run_ranks(2, train_on_rank, [config]):
        wanted = expected["muon"][0]
        assert [loss for loss, _ in figures] == pytest.approx([loss for loss, _ in wanted], rel=0.01)
        assert figures != [pytest.approx(row, rel=TOLERANCE) for row in wanted], "this was not bf16"


def cases(folder: Path, stage: int, **changes: Any) -> list[tuple[RunConfig, Path]]:
    return [(case_config(engine__zero_stage=stage, **VARIANTS[name], **changes), folder / name) for name in WITH_STATE]


@pytest.mark.slow
def test_state_goes_from_any_layout_to_any_other(tmp_path: Path) -> None:
    saved = {}
    for ranks, stage in ((2, 3), (4, 1)):
        folder = tmp_path / f"{ranks}-{stage}"
        saved[ranks, stage] = run_ranks(ranks, save_all_on_rank, cases(folder, stage), STEPS, AFTER)[0]
        check_stored(folder)
    for (ranks, stage), (from_ranks, from_stage) in (((1, 2), (2, 3)), ((4, 3), (4, 1)), ((2, 3), (2, 3))):
        resumed = cases(tmp_path / f"{from_ranks}-{from_stage}", stage, run__seed=99)
        for rank in run_ranks(ranks, resume_all_on_rank, resumed, STEPS, AFTER):
            for found, wanted, name in zip(rank, saved[from_ranks, from_stage], WITH_STATE, strict=True):
                if (ranks, stage) == (from_ranks, from_stage):
                    assert found == wanted, f"{name}: a layout to itself is not bit-identical"
                assert found == [pytest.approx(row, rel=TOLERANCE) for row in wanted], (name, ranks, stage)


def check_stored(folder: Path) -> None:
    """What is kept of each parameter, and Adafactor's statistics against those of the reference."""
    kept: list[torch.optim.Optimizer] = []

    def make(*arguments: Any) -> list[torch.optim.Optimizer]:
        kept.extend(reference_optimizers(*arguments))
        return kept

    _, model = plain_torch(case_config(**VARIANTS["adafactor-momentum"]), STEPS, make)
    checkpoint = newest_intact(folder / "adafactor-momentum")
    assert checkpoint.manifest.optimizer == {"steps": STEPS}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1
        moments = ["exp_avg_sq_col", "exp_avg_sq_row"] if matrix else ["exp_avg_sq"]
        assert sorted(checkpoint.kinds(name)) == ["exp_avg", *moments, "weight"]
        for kind in moments:
            wanted = kept[0].state[parameter][kind]
            assert checkpoint.shape(name, kind) == wanted.shape
            torch.testing.assert_close(checkpoint.full(name, kind), wanted, rtol=1e-3, atol=1e-12)
        hidden = matrix and name.startswith("blocks.")
        muon = newest_intact(folder / "muon").kinds(name)
        assert sorted(muon) == (["momentum_buffer", "weight"] if hidden else ["exp_avg", "exp_avg_sq", "weight"])
        assert sorted(newest_intact(folder / "lion").kinds(name)) == ["exp_avg", "weight"]
    assert newest_intact(folder / "muon").manifest.optimizer == {"steps": STEPS}
