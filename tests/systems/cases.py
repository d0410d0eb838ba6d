"""Twins on test ranks: batches of each objective, trained by the engine on ranks and by plain torch in one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig, load_config
from llmscale.distributed.process_group import all_reduce_sum, join, leave, read_world
from llmscale.engine.engine import accumulation
from llmscale.engine.pipeline import make_engine
from llmscale.engine.settings import EngineSettings
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.train.build import build_grid
from tests.systems.published import TWINS

VOCAB, LENGTH, GLOBAL_BATCH, STEPS = 61, 24, 8, 5
CLIP = 0.5

Figures = list[float]
"""Mean of each term of the loss, then the gradient's norm."""


def twin(name: str, *overrides: str) -> RunConfig:
    """A twin of a quarter of its width, which trains by SGD with clipping on batches of this module."""
    model = load_config(TWINS / f"{name}.yaml").model
    widths = {"hidden_size": model.hidden_size, "ffn_size": model.ffn_channels, "head_size": model.head_size}
    fixed = (
        f"optimizer={{name: sgd, lr: 0.1, clip: {CLIP}, weight_decay: 0}}", "schedule={name: constant}",
        "train.batch_ramp=null",
        f"train.global_batch={GLOBAL_BATCH}", f"train.micro_batch={GLOBAL_BATCH}", f"data.sequence_length={LENGTH}",
        "model.vocab_multiple=1", *(f"model.{key}={width // 4}" for key, width in widths.items() if width),
    )  # fmt: skip
    return load_config(TWINS / f"{name}.yaml", [*fixed, *overrides])


def global_batch(config: RunConfig, step: int) -> Batch:
    """Learnable tokens, with very unequal numbers of targets per sample, one of which has none at all."""
    draw = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCAB // 4, (GLOBAL_BATCH, LENGTH + 1), generator=draw)
    inputs, targets, numbers = tokens[:, :-1], tokens[:, 1:], torch.arange(GLOBAL_BATCH)
    place, sizes = torch.arange(LENGTH), 1 + (numbers * 5 + step) % LENGTH
    real = (place < sizes[:, None]).float()
    weights = real.clone()
    weights[GLOBAL_BATCH // 2] = 0
    match config.objective.name:
        case "masked":
            hidden = (torch.rand(weights.shape, generator=draw) < 0.3).float() * weights
            labels = torch.randint(-1, 2, (GLOBAL_BATCH,), generator=draw)
            types = ((place >= sizes[:, None] // 2) & (real > 0)).long()
            return Batch(
                inputs,
                inputs,
                hidden,
                numbers,
                encoder_weights=real,
                segment_ids=types,
                labels={"next_sentence": labels},
            )
        case "denoising":
            encoder = torch.randint(0, VOCAB, (GLOBAL_BATCH, LENGTH - 4), generator=draw)
            seen = (torch.arange(LENGTH - 4) < sizes.flip(0)[:, None]).float()
            return Batch(inputs, targets, weights, numbers, encoder_inputs=encoder, encoder_weights=seen)
    batch = Batch(inputs, targets, weights, numbers)
    if config.objective.model_dump().get("separate_documents"):
        begin = 3 + numbers[:, None] % 7
        batch.segment_ids = (place >= begin).long()
        batch.positions = torch.where(place >= begin, place - begin, place)
    return batch


def build(config: RunConfig, grid: RankGrid | None = None) -> nn.Module:
    sequence_parallel = config.parallel.sequence_parallel
    return init.build(config.model, VOCAB, config.run.seed, grid=grid, sequence_parallel=sequence_parallel)


def plain_torch(config: RunConfig) -> tuple[list[Figures], nn.Module]:
    """A plain loop over whole batches, and the trained model with the last step's clipped gradients."""
    model, loss = build(config), build_loss(config.objective, config.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr, weight_decay=0)
    found = []
    for step in range(STEPS):
        batch = global_batch(config, step)
        optimizer.zero_grad(set_to_none=False)
        rates = config.model.dropout, config.model.attention_dropout
        dropout = Dropout.of(config.run.seed, batch.sample_ids) if any(rates) else None
        sums = loss(model, batch, dropout)
        terms = [total / count for total, count in zip(sums, loss.counts(batch), strict=True)]
        sum(terms, torch.zeros(())).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        found.append([*(float(term.detach()) for term in terms), float(norm)])
    return found, model


def train_on_rank(configs: list[RunConfig]) -> list[list[Figures]]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(config) for config in configs]
    leave()
    return found


def _train(config: RunConfig) -> list[Figures]:
    grid = build_grid(config, read_world("cpu"))
    loss = build_loss(config.objective, config.model)
    engine = make_engine(build(config, grid), loss, EngineSettings.of(config), grid, torch.device("cpu"))
    micro, _ = accumulation(config.train, grid.data)
    found: list[Any] = []
    for step in range(STEPS):
        own = global_batch(config, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])
        counts = all_reduce_sum([count * grid.is_sample_leader for count in loss.counts(own)])
        sums, norm = engine.train_step(own.split(micro), step, counts)
        sums = all_reduce_sum(sums)
        found.append([*(total / count for total, count in zip(sums, counts, strict=True)), norm])
    return found
