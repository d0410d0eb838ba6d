"""Times of an iteration against published ones: those of LLM Foundry, and the ten rows of Narayanan et al. 2021, table
1 ("Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM").

Layouts, batches and recomputation are those of the table; micro batches and interleaving, which it does not print,
those of the scripts that the authors published with it (Megatron-LM, examples/sc21/run_table_1.sh). Nothing in
`llmscale.plan` is fitted to these rows: its figures are those of llmscale/plan/hardware.py.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pytest

from llmscale.config import ModelConfig
from llmscale.plan.blocks import Software
from llmscale.plan.hardware import A100, H100, H200
from llmscale.plan.layout import Layout
from llmscale.plan.timing import Forecaster, Step
from llmscale.plan.workload import Workload
from tests.plan.published import ratios_of_llm_foundry

SEQUENCE, VOCAB = 2048, 51200
MEDIAN, WORST = 0.15, 0.25


@dataclass(frozen=True)
class Row:
    """A row of table 1."""

    billions: float
    heads: int
    hidden: int
    layers: int
    tensor: int
    pipeline: int
    gpus: int
    batch: int
    tflops: float
    """Achieved by each GPU, recomputation included."""
    micro_batch: int
    chunks: int = 1
    """Model chunks of a stage: its layers over `--num-layers-per-virtual-pipeline-stage`."""
    overlapped: bool = False
    """DDP=torch, which reduces gradients during the backward pass; DDP=local does it afterwards."""

    @property
    def operations(self) -> float:
        """Equation 3."""
        hidden, layers = self.hidden, self.layers
        share = 1 + SEQUENCE / (6 * hidden) + VOCAB / (16 * layers * hidden)
        return 96 * self.batch * SEQUENCE * layers * hidden**2 * share

    @property
    def seconds(self) -> float:
        """Of an iteration, which follows from the achieved rate."""
        return self.operations / (self.gpus * self.tflops * 1e12)


ROWS = (
    Row(1.7, 24, 2304, 24, 1, 1, 32, 512, 137, 16, overlapped=True),
    Row(3.6, 32, 3072, 30, 2, 1, 64, 512, 138, 16, overlapped=True),
    Row(7.5, 32, 4096, 36, 4, 1, 128, 512, 142, 16, overlapped=True),
    Row(18.4, 48, 6144, 40, 8, 1, 256, 1024, 135, 8, overlapped=True),
    Row(39.1, 64, 8192, 48, 8, 2, 512, 1536, 138, 4),
    Row(76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140, 2, chunks=3),
    Row(145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148, 2, chunks=2),
    Row(310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155, 1, chunks=2),
    Row(529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163, 1, chunks=3),
    Row(1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163, 1),
)


def predicted(row: Row) -> Step:
    """GPT-2's block with dropout, as Megatron-LM of 2021 computed it: scores in memory, elementwise operations fused
    (section 4.2), full recomputation, no sharding of the optimizer, stages sending each a share of what they pass on
    (section 4.1)."""
    model = ModelConfig(
        layers=row.layers,
        hidden_size=row.hidden,
        heads=row.heads,
        vocab_size=VOCAB,
        max_positions=SEQUENCE,
        dropout=0.1,
        attention_dropout=0.1,
    )
    data = row.gpus // row.tensor // row.pipeline
    layout = Layout(
        data=data,
        tensor=row.tensor,
        pipeline=row.pipeline,
        zero_stage=0,
        activation_checkpointing="block",
        micro_batch=row.micro_batch,
        accumulation=row.batch // data // row.micro_batch,
        interleave=row.chunks,
    )
    assert layout.world_size == row.gpus
    assert data * layout.micro_batch * layout.accumulation == row.batch
    # Gradients of fp16 weights are summed in fp16 (Megatron-LM of 2021 sums those of bf16 alone in fp32).
    software = Software(fused=True, explicit_attention=True, hashed_dropout=False, gradient=2)
    forecaster = Forecaster(A100, model, Workload(VOCAB, SEQUENCE), software, row.overlapped, scatter_gather=True)
    return forecaster.step(layout, row.batch)


def test_times_of_ten_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    errors = []
    lines = [f"{'B':>7} {'published s':>12} {'predicted s':>12} {'error':>7} {'TFLOP/s':>8} {'predicted':>9}"]
    for row in ROWS:
        step = predicted(row)
        error = step.seconds / row.seconds - 1
        errors.append(abs(error))
        lines.append(
            f"{row.billions:7} {row.seconds:12.2f} {step.seconds:12.2f} {error:+7.1%} {row.tflops:8.0f}"
            f" {step.hardware_tflops:9.0f}"
        )
    lines.append(f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert statistics.median(errors) <= MEDIAN
    assert max(errors) <= WORST


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.billions}B")
def test_operations_and_parameters_are_the_paper_s(row: Row) -> None:
    assert predicted(row).hardware_flops == pytest.approx(row.operations, rel=1e-12)
    # Equation 2: P = 12 l h^2 (1 + 13 / 12h + (V + s) / 12lh).
    hidden, layers = row.hidden, row.layers
    count = 12 * layers * hidden**2 * (1 + 13 / (12 * hidden) + (VOCAB + SEQUENCE) / (12 * layers * hidden))
    assert round(count / 1e9, 1) == row.billions


def narayanan_ratios() -> list[float]:
    return [row.seconds / predicted(row).seconds for row in ROWS]


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_the_error_that_a_plan_states_is_that_of_the_published_runs(gpu: str) -> None:
    ratios = sorted(ratios_of_llm_foundry(gpu) + (narayanan_ratios() if gpu == "a100" else []))
    stated = {"a100": A100, "h100": H100}[gpu].published
    assert stated is not None
    low, high = ratios[round(0.05 * (len(ratios) - 1))], ratios[round(0.95 * (len(ratios) - 1))]
    found = (len(ratios), *(round(figure, 2) for figure in (statistics.median(ratios), low, high)))
    assert (stated.runs, stated.median, stated.low, stated.high) == found
    assert H200.published == H100.published
