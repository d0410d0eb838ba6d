"""One small model and its batches, trained by the engine on ranks and by plain torch in one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.batch import Batch
from llmscale.checkpoint import newest_intact
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.process_group import all_reduce_sum, gather_objects, join, leave, read_world
from llmscale.engine.engine import Engine, accumulation
from llmscale.engine.optimizers import build_optimizer
from llmscale.engine.pipeline import make_engine
from llmscale.engine.schedule import learning_rate
from llmscale.engine.settings import EngineSettings
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.train.build import build_grid
from llmscale.train.resume import restore

Figures = tuple[float, float]
"""Loss and gradient norm of a step."""
Named = list[tuple[str, nn.Parameter]]
MakeOptimizers = Callable[[Named, RunConfig], list[torch.optim.Optimizer]]

VOCAB, LENGTH, GLOBAL_BATCH, STEPS = 61, 16, 8, 5


def case_config(**changes: Any) -> RunConfig:
    """A config whose tensor sizes are odd, so that no partition divides evenly."""
    raw: dict[str, Any] = {
        "run": {"directory": "unused", "seed": 3},
        "data": {"sources": [{"paths": ["unused"]}], "sequence_length": LENGTH},
        "model": {
            "layers": 2, "hidden_size": 30, "heads": 3, "kv_heads": 1, "ffn_size": 71, "vocab_multiple": 1,
            "max_positions": LENGTH,
        },
        "train": {"steps": 20, "global_batch": GLOBAL_BATCH, "micro_batch": 8},
        "optimizer": {"lr": 0.01, "clip": 0.5},
        "schedule": {"warmup_steps": 2},
    }  # fmt: skip
    return parse_config(raw, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def global_batch(step: int, empty: bool = False) -> Batch:
    """The global batch of a step: learnable tokens, with very unequal numbers of targets per sample."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCAB // 4, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    weights = torch.ones(GLOBAL_BATCH, LENGTH)
    for sample in range(GLOBAL_BATCH):
        weights[sample, 1 + (sample * 5 + step) % LENGTH :] = 0
    weights[GLOBAL_BATCH // 2] = 0
    if empty:
        weights.zero_()
    lengths = torch.arange(GLOBAL_BATCH)[:, None] + 9
    return Batch(
        tokens[:, :-1],
        tokens[:, 1:],
        weights,
        sample_ids=torch.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH),
        # For encoder-decoders only.
        encoder_inputs=tokens[:, 1:].flip(1),
        encoder_weights=(torch.arange(LENGTH) < lengths).float(),
    )


def build(config: RunConfig, grid: RankGrid | None = None) -> nn.Module:
    sequence_parallel = config.parallel.sequence_parallel
    return init.build(config.model, VOCAB, config.run.seed, grid=grid, sequence_parallel=sequence_parallel)


def own_optimizers(named: Named, config: RunConfig) -> list[torch.optim.Optimizer]:
    """The project's, over whole parameters: torch's own AdamW or SGD, in the project's groups."""
    return [build_optimizer(named, config.optimizer)]


def plain_torch(
    config: RunConfig, steps: int = STEPS, make: MakeOptimizers = own_optimizers
) -> tuple[list[Figures], nn.Module]:
    """(loss, gradient norm) per step of a plain loop: mean over all targets, clip, update. The reference.

    `lr_scale` of a parameter group multiplies the schedule's learning rate. Returns the trained model too.
    """
    model = build(config)
    optimizers = make(list(model.named_parameters()), config)
    found = []
    for step in range(steps):
        batch = global_batch(step)
        rates = config.model.dropout, config.model.attention_dropout
        dropout = Dropout.of(config.run.seed, batch.sample_ids) if any(rates) else None
        logits = model.head(model(batch.inputs, dropout=dropout).hidden)[..., :VOCAB]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip or float("inf"))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
                group["lr"] = rate * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found, model


def one_step(engine: Engine, grid: RankGrid, step: int) -> Figures:
    """Train a step on this rank's samples; (loss, gradient norm) of the global batch."""
    batch = global_batch(step)
    own = batch.map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])
    found = build_loss(engine.config.objective, engine.config.model).counts(own)
    counts = all_reduce_sum([count * grid.is_sample_leader for count in found])
    micro, _ = accumulation(engine.config.train, grid.data)
    sums, norm = engine.train_step(own.split(micro), step, counts)
    loss, *_ = all_reduce_sum(sums)
    return loss / counts[0], norm


def open_engine(config: RunConfig) -> tuple[Engine, RankGrid]:
    """An engine on this rank; the process group must be there."""
    grid = build_grid(config, read_world("cpu"))
    model = init.build_hollow(config.model, VOCAB, grid, config.parallel.sequence_parallel)
    weights = init.drawn(config.model, config.run.seed)
    loss = build_loss(config.objective, config.model)
    return make_engine(model, loss, EngineSettings.of(config), grid, torch.device("cpu"), weights), grid


def train_on_rank(configs: list[RunConfig], steps: int = STEPS) -> list[list[Figures]]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = []
    for config in configs:
        engine, grid = open_engine(config)
        found.append([one_step(engine, grid, step) for step in range(steps)])
    leave()
    return found


def save_on_rank(config: RunConfig, folder: Path, steps: int, after: int) -> list[Figures]:
    """Train `steps`, write a checkpoint while going on for `after` more; the latter's figures."""
    return save_all_on_rank([(config, folder)], steps, after)[0]


def save_all_on_rank(cases: list[tuple[RunConfig, Path]], steps: int, after: int) -> list[list[Figures]]:
    """As `save_on_rank`, of runs one after the other."""
    join(read_world("cpu"))
    found = [_save(config, folder, steps, after) for config, folder in cases]
    leave()
    return found


def _save(config: RunConfig, folder: Path, steps: int, after: int) -> list[Figures]:
    engine, grid = open_engine(config)
    for step in range(steps):
        one_step(engine, grid, step)
    writer = CheckpointWriter(folder, rank=grid.rank, world=grid.world_size)
    progress = {"tokens": 0, "skipped_steps": 0, "seconds": 0.0}
    extra = {"samples": 0, "progress": progress, "optimizer": engine.counters}
    writer.save(steps, engine.state(), extra)
    found = [one_step(engine, grid, step) for step in range(steps, steps + after)]
    writer.wait()
    gather_objects(None)
    return found


def resume_on_rank(config: RunConfig, folders: list[Path], steps: int, after: int) -> list[list[Figures]]:
    """From each checkpoint in turn, into an engine that has other weights: the figures of the next `after` steps."""
    return resume_all_on_rank([(config, folder) for folder in folders], steps, after)


def resume_all_on_rank(cases: list[tuple[RunConfig, Path]], steps: int, after: int) -> list[list[Figures]]:
    """As `resume_on_rank`, of runs with configs of their own."""
    join(read_world("cpu"))
    found = []
    for config, folder in cases:
        engine, grid = open_engine(config)
        restore(engine, newest_intact(folder))
        found.append([one_step(engine, grid, step) for step in range(steps, steps + after)])
    leave()
    return found
