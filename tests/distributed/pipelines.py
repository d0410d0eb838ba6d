"""Models trained by stages on ranks, and by plain torch in one process."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, join, leave, read_world
from llmscale.engine.engine import Engine
from llmscale.engine.optimizers import build_optimizer
from llmscale.engine.schedule import learning_rate
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel.grid import RankGrid
from tests.engine import cases

STEPS = 5
SIZE = {
    "model__layers": 4, "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 4, "model__ffn_size": 72,
    "model__vocab_multiple": 8,
}  # fmt: skip
"""What two tensor-parallel ranks can share."""

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "model__positions": "rotary", "model__norm": "rmsnorm", "model__activation": "swiglu", "model__bias": False,
        "model__tied_embeddings": False, "model__kv_heads": 2,
    },
    "bert": {
        "model__architecture": "encoder", "model__norm_order": "post", "model__embedding_norm": True,
        "model__token_types": 2, "model__head_transform": True, "model__head_bias": True, "model__next_sentence": True,
        "objective__name": "masked", "objective__next_sentence": True,
    },
    "pangu": {"model__query_layer": True},
    "deepseek": {
        "model__family": "deepseek_v3", "model__experts": "null", "model__tied_embeddings": True,
        "model__latent": "{query_rank: 20, key_value_rank: 16, rotary_size: 4, plain_size: 6, value_size: 8}",
    },
    "relative": {
        "model__positions": "relative", "model__attention_pattern": "[global, local]", "model__window": 5,
        "model__layers": 5,
    },
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer__name": "sgd", "optimizer__lr": 0.05},
    "momentum": {"optimizer__name": "sgd", "optimizer__lr": 0.05, "optimizer__momentum": 0.9},
    "adamw": {"optimizer__name": "adamw", "optimizer__lr": 0.003},
}
DROPPED = {"model__dropout": 0.1, "model__attention_dropout": 0.1}


def config_of(model: str, optimizer: str, **changes: Any) -> RunConfig:
    return cases.case_config(**{**SIZE, **MODELS[model], **OPTIMIZERS[optimizer], **changes})


@dataclass(frozen=True)
class Found:
    """What one rank saw of a run."""

    steps: list[tuple[float, ...]]
    """Of each step the mean of each term of the loss over the global batch, and the norm of the gradient."""
    evaluations: list[float]
    """Mean held-out loss before the first step and after the last."""
    parameters: int
    """Of the whole model, as the engine counts them."""
    embedding: bytes | None
    """The trained embedding, where this rank has it."""


def batch_of(config: RunConfig, step: int) -> Batch:
    """The global batch of a step, with labels of pairs where the objective has them."""
    batch = cases.global_batch(step)
    if config.model.architecture == "encoder":
        place = torch.arange(cases.LENGTH)
        numbers = torch.arange(cases.GLOBAL_BATCH)[:, None]
        batch.segment_ids = (place > 3 + numbers).long()
        batch.labels["next_sentence"] = (numbers[:, 0] + step) % 3 - 1
    return batch


def plain(config: RunConfig) -> Found:
    """A plain loop in one process: each term's mean over the global batch, clip, update."""
    model = cases.build(config)
    optimizer = build_optimizer(list(model.named_parameters()), config.optimizer)
    evaluations = [_plain_losses(model, batch_of(config, 99))[0].item()]
    steps = []
    for step in range(STEPS):
        batch = batch_of(config, step)
        rates = config.model.dropout, config.model.attention_dropout
        losses = _plain_losses(model, batch, Dropout.of(config.run.seed, batch.sample_ids) if any(rates) else None)
        sum(losses).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
        optimizer.step()
        optimizer.zero_grad()
        steps.append((*(loss.item() for loss in losses), norm.item()))
    evaluations.append(_plain_losses(model, batch_of(config, 99))[0].item())
    count = sum(parameter.numel() for parameter in model.parameters())
    return Found(steps, evaluations, count, None)


def _plain_losses(model: Any, batch: Batch, dropout: Dropout | None = None) -> list[torch.Tensor]:
    """The mean of each term over a batch, from logits of all tokens."""
    encodes = model.config.architecture == "encoder"
    lengths = {"token_types": batch.segment_ids, "padding_mask": batch.encoder_weights > 0} if encodes else {}
    hidden = model(batch.inputs, dropout=dropout, **lengths).hidden
    logits = model.head(hidden)[..., : cases.VOCAB]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    found = [(losses * batch.weights.flatten()).sum() / batch.weights.sum()]
    if encodes:
        known = batch.labels["next_sentence"] >= 0
        pairs = model.next_sentence(hidden[:, 0])[known]
        found.append(nn.functional.cross_entropy(pairs, batch.labels["next_sentence"][known]))
    return found


def train_on_rank(configs: list[RunConfig], steps: int = STEPS) -> list[Found]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(config, steps) for config in configs]
    leave()
    return found


def _train(config: RunConfig, steps: int) -> Found:
    engine, grid = cases.open_engine(config)
    evaluations = [_evaluate(engine, grid)]
    # From step to step other micro batches and another number of them, as when the batch grows.
    rows = [_step(engine, grid, step, micro_batch=(2, 1, 4)[step % 3]) for step in range(steps)]
    evaluations.append(_evaluate(engine, grid))
    weights = dict(engine._engine.module.named_parameters())
    embeddings = [weight for name, weight in weights.items() if name.endswith("model.embedding.weight")]
    embedding = embeddings[0].detach().float().numpy().tobytes() if embeddings else None
    return Found(rows, evaluations, engine.parameters, embedding)


def _own(engine: Engine, grid: RankGrid, step: int) -> Batch:
    return batch_of(engine.config, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])


def _step(engine: Engine, grid: RankGrid, step: int, micro_batch: int) -> tuple[float, ...]:
    own = _own(engine, grid, step)
    loss = build_loss(engine.config.objective, engine.config.model)
    counts = all_reduce_sum([count * grid.is_sample_leader for count in loss.counts(own)])
    sums, norm = engine.train_step(own.split(min(micro_batch, own.size)), step, counts)
    return (*(total / count for total, count in zip(all_reduce_sum(sums), counts, strict=True)), norm)


def _evaluate(engine: Engine, grid: RankGrid) -> float:
    """The mean loss of a held-out batch, in two passes of unequal sizes."""
    own = _own(engine, grid, 99)
    parts = own.split(own.size - 1)
    [total, count] = all_reduce_sum(
        [sum(engine.loss(part) for part in parts), float(own.weights.sum()) * grid.is_sample_leader]
    )
    return total / count
