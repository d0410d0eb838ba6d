"""Models that ranks share by positions or by experts, beside a plain loop in one process: every architecture, with what
makes the ranks' parts unlike each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, gather_objects, join, leave, read_world
from llmscale.engine.engine import Engine, accumulation
from llmscale.engine.schedule import learning_rate
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel.grid import RankGrid
from llmscale.slices.fragment import Fragment
from tests.engine.cases import GLOBAL_BATCH, LENGTH, STEPS, VOCAB, build, case_config, open_engine, own_optimizers

SOURCE = 24
"""Tokens of an encoder-decoder's source, which is longer than its target."""
EVALUATED = 77
"""Number of the batch that is evaluated after training."""
SGD: dict[str, Any] = {"optimizer__name": "sgd", "optimizer__lr": 0.3}
DROPOUT: dict[str, Any] = {"model__dropout": 0.1, "model__attention_dropout": 0.1}

_SIZES: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": "null", "model__ffn_size": 72,
    "model__vocab_multiple": 8, "model__max_positions": SOURCE, "train__micro_batch": 2,
}  # fmt: skip
_EXPERTS = "{count: 4, per_token: 2, every: %d, ffn_size: 24, capacity_factor: 0.6, balance_weight: 0.2, z_weight: 0.1}"
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"model__family": "llama", "model__kv_heads": 2},
    "one-key-head": {"model__family": "llama", "model__kv_heads": 1},
    "packed": {"model__family": "qwen3", "model__kv_heads": 2, "objective": "{name: causal, separate_documents: true}"},
    "prefix": {"model__family": "pangu_alpha", "objective": "{name: prefix}"},
    "bert": {"model__family": "bert", "objective": "{name: masked, next_sentence: true}"},
    "modernbert": {"model__family": "modernbert", "model__window": 6, "objective": "{name: masked}"},
    "t5": {"model__family": "t5", "model__encoder_layers": 3, "objective": "{name: denoising}"},
    "alibi": {"model__positions": "alibi"},
    "wu-dao": {"model__init_std": 0.1, "model__family": "wu_dao", "model__experts": _EXPERTS % 2},
    "mixtral": {
        "model__init_std": 0.1,
        "model__family": "mixtral",
        "model__kv_heads": 2,
        "model__experts": _EXPERTS % 1,
    },
    "dropless": {"model__experts": "{count: 8, per_token: 2, balance_weight: 0.05}", "model__bias": True},
}
"""By name, what `model_config` changes. Experts drop many tokens, and their losses weigh more than usual."""


def model_config(name: str, **changes: Any) -> RunConfig:
    """One of `MODELS`, trained with SGD and clipping where nothing else is said."""
    return case_config(**{**_SIZES, **MODELS[name], **SGD, **changes})


def global_batch(config: RunConfig, step: int) -> Batch:
    """The global batch of a step: learnable tokens, and few targets in the later positions of most samples."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCAB // 4, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    source = torch.randint(0, VOCAB // 4, (GLOBAL_BATCH, SOURCE), generator=generator)
    numbers, places = torch.arange(GLOBAL_BATCH)[:, None], torch.arange(LENGTH)
    weights = (places < 1 + (numbers * 5 + step) % LENGTH).float()
    weights[GLOBAL_BATCH // 2] = 0
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights, step * GLOBAL_BATCH + numbers[:, 0])
    settings = config.objective.model_dump()
    match config.model.architecture:
        case "encoder":
            length = 7 + numbers
            batch.encoder_weights = (places < length).float()
            # A part of the positions may have no target at all.
            batch.weights = batch.encoder_weights * (torch.rand(GLOBAL_BATCH, LENGTH, generator=generator) < 0.2)
            batch.targets = tokens[:, :-1]
            batch.segment_ids = (places > length // 2).long()
            batch.labels["next_sentence"] = numbers[:, 0] % 3 - 1
        case "encoder_decoder":
            batch.encoder_inputs = source
            batch.encoder_weights = (torch.arange(SOURCE) < 11 + 2 * numbers).float()
        case _ if settings.get("separate_documents"):
            begin = 3 + numbers % 7
            batch.segment_ids = (places >= begin).long()
            batch.positions = torch.where(places >= begin, places - begin, places)
        case _ if settings["name"] == "prefix":
            batch.prefix_lengths = 1 + numbers[:, 0]
    return batch


def mean_loss(model: nn.Module, config: RunConfig, batch: Batch, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
    """(loss of a target, the same with all that is minimised beside it), written out over whole logits."""
    seen = None if batch.encoder_weights is None else batch.encoder_weights > 0
    options: dict[str, Any] = {}
    match config.model.architecture:
        case "decoder":
            options = {
                "positions": batch.positions, "segment_ids": batch.segment_ids, "prefix_lengths": batch.prefix_lengths
            }  # fmt: skip
        case "encoder":
            options = {"token_types": batch.segment_ids, "padding_mask": seen}
        case "encoder_decoder":
            options = {"encoder_inputs": batch.encoder_inputs, "encoder_padding_mask": seen}
    output = model(batch.inputs, dropout=dropout, **options)
    logits = model.head(output.hidden)[..., :VOCAB]
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.weights)
    loss = (losses * batch.weights).sum() / batch.weights.sum()
    total = loss
    if output.router_loss is not None:
        total = total + (output.router_loss * batch.weights.sum(1)).sum() / batch.weights.sum()
    if config.model.next_sentence:
        labels = batch.labels["next_sentence"]
        total = total + F.cross_entropy(model.next_sentence(output.hidden[:, 0])[labels >= 0], labels[labels >= 0])
    return loss, total


@dataclass
class Trained:
    """What training gives, on any layout."""

    figures: list[tuple[float, float]]
    """(loss, gradient norm) per step."""
    evaluated: float
    """Loss of one more batch, without dropout and capacity."""
    changes: dict[str, np.ndarray]
    """Each parameter's values after the training minus those before it, whole; on rank 0 only."""


def dropout_of(config: RunConfig, batch: Batch) -> Dropout | None:
    rates = config.model.dropout, config.model.attention_dropout
    return Dropout.of(config.run.seed, batch.sample_ids) if any(rates) else None


def plain_loop(config: RunConfig, steps: int = STEPS) -> Trained:
    """In one process, with torch only: mean over all targets, clip, update. The reference."""
    model = build(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = own_optimizers(list(model.named_parameters()), config)
    figures = []
    for step in range(steps):
        batch = global_batch(config, step)
        loss, total = mean_loss(model.train(), config, batch, dropout_of(config, batch))
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip or float("inf"))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
                group["lr"] = rate * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    with torch.no_grad():
        evaluated = mean_loss(model.eval(), config, global_batch(config, EVALUATED), None)[0].item()
    return Trained(
        figures, evaluated, {name: (p.detach() - before[name]).numpy() for name, p in model.named_parameters()}
    )


def train_on_rank(configs: list[RunConfig], steps: int = STEPS) -> list[Trained]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(config, steps) for config in configs]
    leave()
    return found


def _train(config: RunConfig, steps: int) -> Trained:
    engine, grid = open_engine(config)
    before = whole_weights(engine)
    figures = [one_step(engine, grid, step) for step in range(steps)]
    batch = own_samples(config, grid, EVALUATED)
    loss, count = all_reduce_sum([engine.loss(batch), float(batch.weights.sum()) * grid.is_sample_leader])
    after = whole_weights(engine)
    return Trained(
        figures, loss / count, {name: (after[name] - before[name]).numpy() for name in after} if grid.rank == 0 else {}
    )


def own_samples(config: RunConfig, grid: RankGrid, step: int) -> Batch:
    return global_batch(config, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])


def one_step(engine: Engine, grid: RankGrid, step: int) -> tuple[float, float]:
    """Train a step on this rank's samples; (loss, gradient norm) of the global batch."""
    own = own_samples(engine.config, grid, step)
    found = build_loss(engine.config.objective, engine.config.model).counts(own)
    counts = all_reduce_sum([count * grid.is_sample_leader for count in found])
    micro, _ = accumulation(engine.config.train, grid.data)
    sums, norm = engine.train_step(own.split(micro), step, counts)
    loss, *_ = all_reduce_sum(sums)
    return loss / counts[0], norm


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """Every global tensor, from what the ranks would write to a checkpoint: each element by one of them."""
    own = [fragment for fragment in engine.state() if fragment.kind == "weight"]
    found: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    for fragment in (each for rank in gather_objects(own) for each in rank):
        found.setdefault(fragment.name, torch.zeros(fragment.slice.shape))
        written.setdefault(fragment.name, torch.zeros(fragment.slice.shape))
        _put(found[fragment.name], fragment, fragment.tensor)
        _put(written[fragment.name], fragment, torch.ones_like(fragment.tensor))
    assert all(bool((times == 1).all()) for times in written.values())
    assert found.keys() == {name for name, _ in engine.named}
    return found


def _put(whole: Tensor, fragment: Fragment, values: Tensor) -> None:
    held = fragment.slice
    where = tuple(slice(low, low + size) for low, size in zip(held.offsets, held.sizes, strict=True))
    part = torch.zeros(held.sizes)
    part.view(-1)[held.start : held.end] = values
    whole[where] += part


def differences(found: Trained, expected: Trained) -> dict[str, float]:
    """The largest difference of each parameter's change, as a share of its largest change or of 1e-3 of the change of
    all."""
    norm = sum(float(np.square(change).sum()) for change in expected.changes.values()) ** 0.5
    return {
        name: float(np.abs(found.changes[name] - change).max()) / max(float(np.abs(change).max()), 1e-3 * norm)
        for name, change in expected.changes.items()
    }


def require_equal(name: str, config: RunConfig, found: Trained, tolerance: float = 1e-5) -> None:
    """Losses and norms are those of a plain loop within `tolerance`; with SGD every parameter's change is too, within
    1e-3, below which rounding shows. (AdamW makes as much of the gradient of a key's bias, truly 0, as of others.)"""
    expected = plain_loop(config)
    assert found.figures == [pytest.approx(row, rel=tolerance) for row in expected.figures], name
    assert found.evaluated == pytest.approx(expected.evaluated, rel=tolerance), name
    if config.optimizer.name == "sgd":
        wrong = {parameter: share for parameter, share in differences(found, expected).items() if not share < 1e-3}
        assert not wrong, (name, wrong)
