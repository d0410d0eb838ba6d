"""Iterations that others published, beside what `llmscale.plan` forecasts of them."""

from __future__ import annotations

import csv
from pathlib import Path

from llmscale.config import ModelConfig
from llmscale.plan.blocks import Software
from llmscale.plan.hardware import TABLE
from llmscale.plan.layout import Layout
from llmscale.plan.timing import Forecaster
from llmscale.plan.workload import Workload

LLM_FOUNDRY = Path(__file__).with_name("llm_foundry.csv")
"""Throughput of MPT models on H100 and A100 80GB by FSDP: the tables of scripts/train/benchmarking/README.md in
mosaicml/llm-foundry (2023), all rows of these two GPUs in bf16."""
VOCAB = 50368
SHAPES = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
"""(layers, hidden size, heads), from the files in scripts/train/yamls/pretrain there."""


def ratios_of_llm_foundry(gpu: str) -> list[float]:
    """Published over forecast seconds of each row of a GPU. FSDP's sharding is that of ZeRO 2 and 3."""
    with LLM_FOUNDRY.open() as lines:
        return [_ratio(row) for row in csv.DictReader(lines) if row["gpu"] == gpu]


def _ratio(row: dict[str, str]) -> float:
    layers, hidden, heads = SHAPES[row["model"]]
    sequence, batch = int(row["sequence"]), int(row["global_batch"])
    model = ModelConfig(
        layers=layers, hidden_size=hidden, heads=heads, vocab_size=VOCAB, max_positions=sequence, bias=False
    )
    layout = Layout(
        data=int(row["gpus"]),
        zero_stage=int(row["zero_stage"]),
        activation_checkpointing=row["recompute"],
        micro_batch=int(row["micro_batch"]),
        accumulation=int(row["accumulation"]),
    )
    software = Software(hashed_dropout=False, gradient=2 if row["gradients"] == "bf16" else 4)
    forecaster = Forecaster(TABLE[row["gpu"]], model, Workload(VOCAB, sequence), software)
    return batch * sequence / float(row["tokens_per_second"]) / forecaster.step(layout, batch).seconds
