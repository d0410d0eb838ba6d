"""The head of classification on ranks beside a plain loop in one process: data, tensor, pipeline and sequence
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
from tests.distributed.parts import SGD
from tests.engine.cases import GLOBAL_BATCH, LENGTH, STEPS, VOCAB, build, case_config, open_engine, own_optimizers
from tests.ranks import run_ranks

Figures = tuple[float, ...]
"""Loss and gradient norm of a step; of an evaluation its loss and accuracy."""

SIZES: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": "null", "model__ffn_size": 72,
    "model__vocab_multiple": 8, "train__micro_batch": 2,
}  # fmt: skip
LABELS = "{name: classification, labels: [a, b, c], pooling: %s, dropout: %s}"
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"model__family": "bert", "model__next_sentence": False, "objective": LABELS % ("first", 0.2)},
    "gpt2": {"model__family": "gpt2", "objective": LABELS % ("last", 0.0)},
    "mean": {"model__family": "llama", "model__kv_heads": 2, "objective": LABELS % ("mean", 0.0)},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"engine__zero_stage": stage}) for stage, name in ((1, "bert"), (2, "gpt2"), (3, "bert"), (3, "mean"))),
    *((name, {"parallel__tensor": 2}) for name in MODELS),
    *((name, {"parallel__tensor": 2, "parallel__sequence_parallel": True}) for name in ("bert", "gpt2")),
    *((name, {"parallel__pipeline": 2}) for name in MODELS),
    ("bert", {"parallel__context": 2}),
]
"""(model, layout on two ranks)."""


def config_of(name: str, layout: dict[str, Any]) -> RunConfig:
    return case_config(**{**SIZES, **MODELS[name], **SGD, **layout})


def batch_of(config: RunConfig, step: int) -> Batch:
    """The global batch of a step, texts of unequal lengths, of which two have no label."""
    draw = torch.Generator().manual_seed(step)
    lengths = torch.randint(2, LENGTH + 1, (GLOBAL_BATCH, 1), generator=draw)
    labels = torch.randint(3, (GLOBAL_BATCH,), generator=draw)
    labels[[1, 4]] = -1
    places = torch.arange(LENGTH)
    encodes = config.model.architecture == "encoder"
    return Batch(
        torch.randint(VOCAB, (GLOBAL_BATCH, LENGTH), generator=draw),
        torch.zeros(GLOBAL_BATCH, 1, dtype=torch.int64),
        (labels >= 0).float()[:, None],
        torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH,
        encoder_weights=(places < lengths).float(),
        segment_ids=(places >= lengths // 2).long() if encodes else None,
        labels={"classification": labels},
    )


def plain_logits(model: Any, batch: Batch, dropout: Dropout | None) -> Tensor:
    head, real = model.config.head, batch.encoder_weights > 0
    others = {"token_types": batch.segment_ids, "padding_mask": real} if model.config.architecture == "encoder" else {}
    hidden = model(batch.inputs, dropout=dropout, **others).hidden
    rows = torch.arange(len(hidden))
    vectors = {
        "first": lambda: hidden[:, 0],
        "last": lambda: hidden[rows, real.sum(1) - 1],
        "mean": lambda: (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True),
    }[head.pooling]()
    return model.classification(vectors, None if dropout is None else dropout.for_head())


def plain(config: RunConfig) -> tuple[list[Figures], Figures]:
    """A plain loop: mean over the labelled samples, clip, update; and an evaluation of one more batch."""
    model = build(config)
    [optimizer] = own_optimizers(list(model.named_parameters()), config)
    assert config.model.head is not None
    figures = []
    for step in range(STEPS):
        batch = batch_of(config, step)
        dropout = Dropout.of(config.run.seed, batch.sample_ids) if config.model.head.dropout else None
        loss = F.cross_entropy(
            plain_logits(model, batch, dropout), batch.labels["classification"], ignore_index=-1, reduction="mean"
        )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    batch = batch_of(config, 99)
    with torch.no_grad():
        logits, labels = plain_logits(model, batch, None), batch.labels["classification"]
    known = labels >= 0
    right = (logits.argmax(1) == labels)[known].float().mean()
    return figures, (F.cross_entropy(logits[known], labels[known]).item(), right.item())


def train_on_rank(configs: list[RunConfig]) -> list[tuple[list[Figures], Figures]]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(config) for config in configs]
    leave()
    return found


def _train(config: RunConfig) -> tuple[list[Figures], Figures]:
    engine, grid = open_engine(config)

    def own(step: int) -> Batch:
        return batch_of(config, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])

    figures = []
    for step in range(STEPS):
        batch = own(step)
        [count] = all_reduce_sum([float(batch.weights.sum()) * grid.is_sample_leader])
        micro, _ = accumulation(config.train, grid.data)
        sums, norm = engine.train_step(batch.split(micro), step, [count])
        [total] = all_reduce_sum(sums)
        figures.append((total / count, norm))
    batch = own(99)
    *sums, count = all_reduce_sum([*engine.measure(batch), float(batch.weights.sum()) * grid.is_sample_leader])
    return figures, tuple(total / count for total in sums)


FEW = [CASES[2], ("gpt2", {"parallel__tensor": 2}), ("bert", {"parallel__pipeline": 2})]
"""One of each kind of layout."""


@pytest.mark.parametrize("cases", [FEW, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_two_ranks_train_as_plain_torch(cases: list[tuple[str, dict[str, Any]]]) -> None:
    configs = [config_of(name, layout) for name, layout in cases]
    for rank in run_ranks(2, train_on_rank, configs):
        for (name, layout), config, (figures, evaluated) in zip(cases, configs, rank, strict=True):
            expected, last = plain(config)
            assert figures == [pytest.approx(row, rel=1e-5) for row in expected], (name, layout)
            assert evaluated == pytest.approx(last, rel=1e-5), (name, layout)
