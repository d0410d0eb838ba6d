"""Measuring the peak memory of a training step on real ranks."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.memory import all_tensor_bytes, peak_bytes
from data_pipeline.batch import Batch
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.process_group import join, leave, read_world
from llmscale.engine.engine import accumulation
from llmscale.engine.pipeline import make_engine
from llmscale.engine.settings import EngineSettings
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.train.build import build_grid

VOCAB, LENGTH = 1024, 128
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2", "layers": 4, "hidden_size": 256, "heads": 8},
    "llama": {"family": "llama", "layers": 4, "hidden_size": 256, "heads": 8, "kv_heads": 4, "ffn_size": 688},
}


def peak_config(
    family: str,
    stage: int,
    recompute: str,
    samples: int,
    micro: int,
    dtype: str = "fp32",
    bucket: int | None = 500_000,
    **parallel: Any,
) -> RunConfig:
    """A small run of `samples` samples a step; the bucket is the default one where it is None."""
    buckets = {} if bucket is None else {"bucket_elements": bucket}
    return parse_config(
        {
            "run": {"directory": "unused", "seed": 3},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": LENGTH},
            "model": {**FAMILIES[family], "vocab_size": VOCAB, "max_positions": LENGTH},
            "parallel": parallel,
            "train": {"steps": 20, "global_batch": samples, "micro_batch": micro},
            "engine": {"zero_stage": stage, "activation_checkpointing": recompute, "dtype": dtype, **buckets},
        }
    )


def peak_of_a_step(config: RunConfig) -> int:
    """Most bytes of tensors on this rank during the third step."""
    join(read_world("cpu"))
    grid = build_grid(config, read_world("cpu"))
    micro, count = accumulation(config.train, grid.data)
    targets = float(config.train.global_batch * LENGTH)
    model = init.build_hollow(config.model, VOCAB, grid, config.parallel.sequence_parallel)
    loss = build_loss(config.objective, config.model)
    weights = init.drawn(config.model, config.run.seed)
    engine = make_engine(model, loss, EngineSettings.of(config), grid, torch.device("cpu"), weights)
    given = batches(micro, count, grid.coordinate("data"))
    for step in range(2):
        engine.train_step(given, step, [targets])
    settled = all_tensor_bytes()
    more, _ = peak_bytes(lambda: engine.train_step(given, 2, [targets]))
    leave()
    return settled + more


def batches(micro: int, count: int, place: int) -> list[Batch]:
    """Random tokens of one data-parallel rank."""
    draw = torch.Generator().manual_seed(place)
    rows = torch.randint(0, VOCAB, (count, micro, LENGTH + 1), generator=draw)
    return [Batch(row[:, :-1], row[:, 1:], torch.ones(micro, LENGTH), torch.arange(micro)) for row in rows]
