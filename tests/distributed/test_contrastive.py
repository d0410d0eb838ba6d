"""Contrastive learning beside a plain loop over the whole global batch: micro batches, data, tensor and expert
parallelism, ZeRO 1 to 3."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, join, leave, read_world
from llmscale.engine.engine import accumulation
from llmscale.engine.schedule import learning_rate
from llmscale.model import Dropout
from llmscale.model.dropout import fold
from tests.distributed.parts import SGD
from tests.engine.cases import GLOBAL_BATCH, LENGTH, STEPS, VOCAB, build, case_config, open_engine, own_optimizers
from tests.ranks import run_ranks

Figures = tuple[float, ...]
"""Loss and gradient norm of a step; of an evaluation its loss, accuracy and mean reciprocal rank."""

SIZES: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": "null", "model__ffn_size": 72,
    "model__vocab_multiple": 8, "train__micro_batch": 2,
}  # fmt: skip
OBJECTIVE = "{name: contrastive, pooling: %s, negatives: %d, symmetric: %s, positives: %s, normalize: %s}"
DROPS = {"model__dropout": 0.1, "model__attention_dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"model__family": "bert", "model__next_sentence": False}
    | {"objective": OBJECTIVE % ("first", 1, "true", "target", "true"), **DROPS},
    "gpt2": {"model__family": "gpt2", "objective": OBJECTIVE % ("last", 0, "true", "target", "true")},
    "mean": {"model__family": "llama", "model__kv_heads": 2}
    | {"objective": OBJECTIVE % ("mean", 2, "false", "target", "false")},
    "simcse": {"model__family": "bert", "model__next_sentence": False}
    | {"objective": OBJECTIVE % ("mean", 0, "false", "dropout", "true"), **DROPS},
    "experts": {"model__family": "mixtral", "model__kv_heads": 2, "model__experts": "{count: 4, ffn_size: 24}"}
    | {"objective": OBJECTIVE % ("mean", 0, "false", "target", "true")},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"engine__zero_stage": stage}) for stage, name in ((1, "bert"), (2, "gpt2"), (3, "bert"), (3, "mean"))),
    *((name, {"parallel__tensor": 2}) for name in ("bert", "gpt2", "mean")),
    ("bert", {"parallel__tensor": 2, "parallel__tensor_sequence": True}),
    ("simcse", {"train__micro_batch": 1}),
    ("simcse", {"engine__zero_stage": 3, "engine__recompute": "block"}),
    ("experts", {"parallel__expert": 2}),
]
"""(model, layout on two ranks)."""


def config_of(name: str, layout: dict[str, Any]) -> RunConfig:
    return case_config(**{**SIZES, **MODELS[name], **SGD, **layout})


def batch_of(config: RunConfig, step: int) -> Batch:
    """The global batch of a step: texts of unequal lengths, of which some are equal."""
    draw = torch.Generator().manual_seed(step)
    texts = 2 + config.objective.negatives  # type: ignore[attr-defined]
    tokens = torch.randint(VOCAB, (GLOBAL_BATCH, texts, LENGTH), generator=draw)
    lengths = torch.randint(2, LENGTH + 1, (GLOBAL_BATCH, texts, 1), generator=draw)
    keys = torch.arange(GLOBAL_BATCH * texts).view(GLOBAL_BATCH, texts)
    if config.objective.positives == "dropout":  # type: ignore[attr-defined]
        tokens, lengths, keys = (each[:, :1].expand_as(each).clone() for each in (tokens, lengths, keys))
    for source, place in (((0, 1), (5, 1)), ((2, 0), (3, 0)), ((4, 0), (6, 1))):
        tokens[place], lengths[place], keys[place] = tokens[source], lengths[source], keys[source]
    return Batch(
        tokens.flatten(1),
        torch.zeros(GLOBAL_BATCH, 1, dtype=torch.int64),
        torch.ones(GLOBAL_BATCH, 1),
        torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH,
        encoder_weights=(torch.arange(LENGTH) < lengths).float().flatten(1),
        labels={"contrastive": keys},
    )


def plain_vectors(model: Any, config: RunConfig, batch: Batch, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
    """(N, R, channels), and the routers' loss."""
    count, texts = batch.labels["contrastive"].shape
    real = batch.encoder_weights.view(count * texts, LENGTH) > 0  # type: ignore[union-attr]
    others = {"padding_mask": real} if config.model.architecture == "encoder" else {}
    if dropout is not None:
        keys = torch.stack([fold(dropout.keys, number) for number in range(texts)], dim=1)
        dropout = Dropout(keys.view(-1, 2))
    output = model(batch.inputs.view(count * texts, LENGTH), dropout=dropout, **others)
    rows = []
    for hidden, own in zip(output.hidden, real, strict=True):
        states = hidden[own]
        pooling = config.objective.pooling  # type: ignore[attr-defined]
        row = {"first": states[0], "last": states[-1], "mean": states.mean(0)}[pooling]
        rows.append(row / row.norm() if config.objective.normalize else row)  # type: ignore[attr-defined]
    routers = output.router_loss.mean() if output.router_loss is not None else torch.zeros(())
    return torch.stack(rows).view(count, texts, -1), routers


def plain_loss(config: RunConfig, vectors: Tensor, keys: Tensor) -> tuple[Tensor, Figures]:
    """Query by query, candidate by candidate."""
    losses, places = [], []
    objective: Any = config.objective
    for way in range(1 + objective.symmetric):
        for own in range(len(vectors)):
            asked, right = (own, way), (own, 1 - way)
            candidates = [right]
            for other in range(len(vectors)):
                equal = {int(keys[asked]), int(keys[right])}
                if other != own and int(keys[other, 1 - way]) not in equal and keys[other, way] != keys[asked]:
                    candidates.append((other, 1 - way))
                if way == 0:
                    hard = range(2, keys.shape[1])
                    candidates += [(other, number) for number in hard if int(keys[other, number]) not in equal]
            scores = torch.stack([vectors[asked] @ vectors[place] for place in candidates])
            losses.append(-(scores / objective.temperature).log_softmax(0)[0])
            places += [1 + int((scores[1:] >= scores[0]).sum())] if way == 0 else []
    found = torch.tensor(places)
    return torch.stack(losses).mean(), ((found == 1).float().mean().item(), (1 / found).mean().item())


def plain(config: RunConfig) -> tuple[list[Figures], Figures]:
    """A plain loop: mean over the samples, clip, update; and an evaluation of one more batch."""
    model = build(config)
    [optimizer] = own_optimizers(list(model.named_parameters()), config)
    figures = []
    for step in range(STEPS):
        batch = batch_of(config, step)
        dropout = Dropout.of(config.run.seed, batch.sample_ids) if config.model.dropout else None
        vectors, routers = plain_vectors(model, config, batch, dropout)
        loss, _ = plain_loss(config, vectors, batch.labels["contrastive"])
        (loss + routers).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    batch = batch_of(config, 99)
    with torch.no_grad():
        vectors, _ = plain_vectors(model.eval(), config, batch, None)
        loss, measured = plain_loss(config, vectors, batch.labels["contrastive"])
    return figures, (loss.item(), *measured)


def train_on_rank(configs: list[RunConfig]) -> list[tuple[list[Figures], Figures]]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(config) for config in configs]
    leave()
    return found


def _train(config: RunConfig) -> tuple[list[Figures], Figures]:
    engine, grid = open_engine(config)
    figures = []
    for step in range(STEPS):
        batch = batch_of(config, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])
        [count] = all_reduce_sum([float(batch.size) * grid.is_sample_leader])
        micro, _ = accumulation(config.train, grid.data)
        counts = [count] * (1 + (config.model.experts is not None))
        sums, norm = engine.train_step(batch.split(micro), step, counts)
        figures.append((all_reduce_sum(sums)[0] / count, norm))
    # Of the whole batch on every rank.
    sums = engine.measure(batch_of(config, 99))
    alike = grid.data * grid.context
    return figures, tuple(total / alike / GLOBAL_BATCH for total in all_reduce_sum(sums))


FEW = [CASES[0], CASES[3], ("gpt2", {"parallel__tensor": 2}), CASES[8]]
"""One of each kind of layout."""


@pytest.mark.parametrize("cases", [FEW, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_two_ranks_train_as_plain_torch(cases: list[tuple[str, dict[str, Any]]]) -> None:
    configs = [config_of(name, layout) for name, layout in cases]
    for rank in run_ranks(2, train_on_rank, configs):
        for (name, layout), config, (figures, evaluated) in zip(cases, configs, rank, strict=True):
            expected, last = plain(config)
            assert figures == [pytest.approx(row, rel=1e-5) for row in expected], (name, layout)
            assert evaluated == pytest.approx(last, rel=1e-5), (name, layout)


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_micro_batches_are_the_whole_batch(micro: int) -> None:
    """In one process, dropout included."""
    config = config_of("bert", {"train__micro_batch": micro})
    [(figures, evaluated)] = run_ranks(1, train_on_rank, [config])[0]
    expected, last = plain(config)
    assert figures == [pytest.approx(row, rel=1e-5) for row in expected]
    assert evaluated == pytest.approx(last, rel=1e-5)


def test_gradients_are_those_of_the_whole_batch() -> None:
    """By the vectors, in double precision."""
    from llmscale.model.heads import heads_of

    config = config_of("bert", {})
    [head] = heads_of(config.model)
    keys = batch_of(config, 0).labels["contrastive"]
    vectors = F.normalize(torch.randn(*keys.shape, 16, dtype=torch.float64), dim=-1).requires_grad_()
    loss, _ = plain_loss(config, vectors, keys)
    (GLOBAL_BATCH * loss).backward()
    found = head.of_whole_batch(vectors, {"contrastive": keys})
    torch.testing.assert_close(found["contrastive.gradient"], vectors.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["contrastive.losses"].mean(), loss.detach(), rtol=1e-9, atol=1e-9)
