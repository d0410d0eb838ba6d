"""Laws that a step's forecast must follow, computed another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmscale.config import ModelConfig
from llmscale.config.training import micro_batches
from llmscale.plan import kernels
from llmscale.plan.blocks import Software
from llmscale.plan.hardware import A100
from llmscale.plan.layout import Layout
from llmscale.plan.timing import Forecaster, Step
from llmscale.plan.workload import Workload

MODEL = ModelConfig(layers=8, hidden_size=2048, heads=16, vocab_size=32000, max_positions=2048)
WORK = Workload(32000, 2048)


def step(samples: int = 64, model: ModelConfig = MODEL, gpu: Any = A100, **sizes: Any) -> Step:
    layout = Layout(**sizes)
    layout = replace(layout, accumulation=samples // layout.data // layout.micro_batch)
    return Forecaster(gpu, model, WORK, Software()).step(layout, samples)


def test_causes_add_up_and_rates_follow() -> None:
    found = step(data=2, tensor=2, pipeline=2, activation_checkpointing="block")
    causes = [found.products, found.attention, found.passes, found.recompute, found.tensor, found.data]
    assert found.seconds == pytest.approx(sum(causes) + found.bubble + found.sending + found.optimizer)
    assert all(cause > 0 for cause in (*causes, found.bubble, found.sending, found.optimizer))
    assert found.mfu == pytest.approx(found.model_flops / found.seconds / 8 / 312e12)
    assert found.hardware_tflops > found.tflops


def test_the_bubble_is_that_of_the_papers() -> None:
    """(p - 1) / m of the ideal time (Narayanan et al. 2021, section 2.2.1), 1 / v of it when interleaved."""
    model = MODEL.model_copy(update={"vocab_size": 128, "layers": 128})  # the last stage is hardly longer
    work = Workload(128, 2048)
    quiet = replace(A100, network_bandwidth=1e18, link_bandwidth=1e18, link_latency=0.0, network_latency=0.0)
    for chunks in (1, 2):
        layout = Layout(pipeline=4, accumulation=16, interleave=chunks)
        found = Forecaster(quiet, model, work, Software()).step(layout, 16)
        # A single micro batch adds its gradients to none.
        alone = Forecaster(quiet, model, work, Software()).step(replace(layout, accumulation=1), 1)
        ideal = 16 * (alone.products + alone.attention + alone.passes)
        assert found.bubble / ideal == pytest.approx(3 / 16 / chunks, rel=0.02)


def test_block_recomputation_repeats_the_forward_pass_of_the_blocks() -> None:
    """Three passes of equal cost become four (Chen et al. 2016)."""
    without, again = step(), step(activation_checkpointing="block")
    extra = again.seconds / without.seconds - 1
    assert 0.2 < extra < 0.34
    assert again.model_flops == without.model_flops
    assert step(activation_checkpointing="selective").seconds < again.seconds


def test_tensor_parallelism_sends_four_all_reduces_a_layer() -> None:
    """Shoeybi et al. 2019, section 3: two forward and two backward."""
    found = step(tensor=4)
    once = kernels.all_reduce(A100, 2048 * 2048 * 2, kernels.ranks(A100, 4, 1))
    assert found.tensor == pytest.approx(64 * (4 * 8 + 2) * once)
    sequence_parallel = step(tensor=4, sequence_parallel=True)
    assert sequence_parallel.tensor == pytest.approx(found.tensor, rel=0.05)


def test_later_zero_stages_communicate_more() -> None:
    slow = replace(A100, network_bandwidth=1e9)
    data = [step(gpu=slow, data=32, zero_stage=stage, micro_batch=1).data for stage in (1, 2, 3)]
    assert data[0] < data[1] < data[2]
    assert step(data=1).data == 0


def test_one_rank_of_a_fast_network_scales_perfectly() -> None:
    quiet = replace(A100, network_bandwidth=1e18, link_bandwidth=1e18, link_latency=0.0, network_latency=0.0)
    alone, many = step(gpu=quiet, samples=1), step(gpu=quiet, samples=8, data=8)
    assert many.seconds - many.optimizer == pytest.approx(alone.seconds - alone.optimizer, rel=1e-3)


def test_a_faster_machine_is_faster_where_it_is_faster() -> None:
    usual = step()
    memory, compute = step(gpu=replace(A100, memory_bandwidth=4e12)), step(gpu=replace(A100, bf16_peak=624e12))
    assert memory.passes == pytest.approx(usual.passes * 2.039 / 4, rel=0.02)
    assert compute.products < 0.6 * usual.products
    assert compute.passes == usual.passes


@pytest.mark.parametrize("samples", [1, 6, 7, 12, 64])
@pytest.mark.parametrize("largest", [1, 4, 5, 8])
def test_micro_batches_are_the_largest_equal_parts(samples: int, largest: int) -> None:
    micro, count = micro_batches(samples, largest)
    assert micro * count == samples
    assert micro <= largest
    assert all(samples % more for more in range(micro + 1, min(largest, samples) + 1))
