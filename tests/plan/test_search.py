"""The search beside brute force, its refusals, and the calibration file."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale import layout as layouts
from llmscale.config import load_config
from llmscale.plan.commands import UNITS, memory_size
from llmscale.plan.hardware import A100, H100, Hardware, hardware_named
from llmscale.plan.layout import layout_of
from llmscale.plan.memory import memory
from llmscale.plan.search import HEADROOM, MICRO_BATCHES, Planner
from llmscale.plan.workload import workload_of

SYSTEMS = Path(__file__).parents[2] / "configs/systems"
GIB = 2**30


def planner(name: str, *overrides: str, gib: float = 80, gpu: Hardware = A100) -> Planner:
    config = load_config(SYSTEMS / f"{name}.yaml", overrides)
    return Planner(config, workload_of(config), gpu, gib * GIB)


def brute_force(planned: Planner, ranks: int) -> dict[tuple[Any, ...], float]:
    """Seconds by layout of all that is legal and fits, one by one."""
    config = planned.config
    found = {}
    sizes = [size for size in range(1, ranks + 1) if ranks % size == 0]
    grid = itertools.product(
        [size for size in sizes if size <= 8],
        (False, True),
        sizes,
        sizes,
        sizes,
        (1, 2, 3),
        ("none", "selective", "block"),
    )
    for tensor, positions, sequence, pipeline, expert, stage, recompute in grid:
        layout = layouts.Layout(
            ranks, pipeline, None, sequence, tensor, positions, expert, stage, config.engine.compile, recompute
        )
        if layouts.problem(layouts.with_layout(config, layout), ranks):
            continue
        for largest in {*MICRO_BATCHES, config.train.micro_batch}:
            own = layout_of(config, layout, largest)
            if memory(config, planned.work, own).total <= planned.limit * (1 - HEADROOM):
                found[tuple(getattr(own, field.name) for field in fields(own))] = (
                    planned.forecaster().step(own, config.train.global_batch).seconds
                )
    return found


@pytest.mark.parametrize(("name", "gib"), [("llama3_8b", 80), ("qwen3_8b", 40), ("mixtral_8x7b", 140), ("t5_base", 16)])
def test_the_search_finds_all_that_fit_and_ranks_them(name: str, gib: float) -> None:
    planned = planner(name, gib=gib)
    ranks = 8 if name != "mixtral_8x7b" else 16
    expected = brute_force(planned, ranks)
    found = planned.search(ranks)
    keys = [tuple(getattr(one.layout, field.name) for field in fields(one.layout)) for one in found]
    assert len(keys) == len(set(keys)) > 1
    assert set(keys) == set(expected)
    seconds = [one.step.seconds for one in found]
    assert seconds == pytest.approx(sorted(expected.values()))
    for one in found:
        assert one.layout.world_size == ranks
        assert one.memory.total <= gib * GIB


def test_what_fits_nowhere_names_the_smallest_number_of_gpus_that_would_do() -> None:
    planned = planner("gpt_neox_20b")
    with pytest.raises(UserError, match=r"no legal layout on 2 GPUs fits 80 GiB each; (\d+) is the smallest") as raised:
        planned.search(2)
    named = int(str(raised.value).rpartition(" ")[2])
    assert planned.search(named)
    for fewer in range(3, named):
        with pytest.raises(UserError):
            planned.search(fewer)


def test_what_fits_no_number_of_gpus_says_so() -> None:
    with pytest.raises(UserError, match="nor does one on any larger number; give GPUs with more memory"):
        planner("gpt_neox_20b", gib=0.1).search(8)


def test_a_number_of_gpus_without_a_legal_layout_is_refused_with_the_nearest() -> None:
    # A prime above the number of layers, which neither a pipeline nor anything else can share.
    with pytest.raises(UserError, match=r"--gpus is 97, on which no layout is legal: .* \(97\).*; use "):
        planner("gpt3_175b").search(97)


def test_compiled_layers_are_forecast_faster() -> None:
    eager, compiled = (planner("llama3_8b", f"engine.compile={on}", "engine.zero_stage=1") for on in ("false", "true"))
    assert compiled.search(8)[0].step.seconds < eager.search(8)[0].step.seconds


@pytest.mark.parametrize("text", ["80", "80 ", "GiB", "80XB", "0GiB", "-1GiB", "", "80 GiB each"])
def test_a_wrong_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--gpu-memory is .*(; write .*GiB|use one of|such as 80GiB)"):
        memory_size(text)


def test_sizes_of_memory() -> None:
    assert memory_size("80GiB") == memory_size("80 gib") == 80 * 2**30
    assert memory_size("1.5TB") == 1.5e12
    assert memory_size("81920MiB") == A100.memory
    assert set(UNITS) == {"MB", "GB", "TB", "MIB", "GIB", "TIB"}


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(
        UserError, match="--hardware is b200, which the table does not have; use one of a100, h100, h200"
    ):
        hardware_named("b200")


def test_a_calibration_file_overrides_the_table(tmp_path: Path) -> None:
    figures = {"matmul_fraction": 0.5, "network_bandwidth": 12.5e9, "name": "ours"}
    for name, text in (
        ("a.json", json.dumps(figures)),
        ("b.yaml", "{matmul_fraction: 0.5, network_bandwidth: 12.5e9}"),
    ):
        (tmp_path / name).write_text(text)
        found = hardware_named("H100", tmp_path / name)
        assert (found.matmul_fraction, found.network_bandwidth) == (0.5, 12.5e9)
        assert found.memory_bandwidth == H100.memory_bandwidth
        assert found.source == str(tmp_path / name)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"matmul_fraction": H100.matmul_fraction / 2}))
    slower = planner("llama3_8b", gpu=hardware_named("h100", tmp_path / "c.yaml"))
    usual = planner("llama3_8b", gpu=H100)
    assert slower.own(8).step.products == pytest.approx(2 * usual.own(8).step.products, rel=0.05)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("matmul: 0.5", "'matmul' is no figure of the hardware; it knows"),
        ("matmul_fraction: fast", "'matmul_fraction' is 'fast', but must be a number above 0"),
        ("matmul_fraction: -1", "'matmul_fraction' is -1, but must be a number above 0"),
        ("bf16_peak: true", "'bf16_peak' is True, but must be a number"),
        ("link_fraction: 1.2", "'link_fraction' is 1.2, but is a fraction of the peak; give at most 1"),
        ("- 1", "must hold a mapping"),
        ("{", "is neither valid JSON nor YAML"),
    ],
)
def test_a_wrong_calibration_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "figures.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        hardware_named("a100", tmp_path / "figures.yaml")
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_calibration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read calibration file .*: No such file"):
        hardware_named("a100", tmp_path / "none.json")
