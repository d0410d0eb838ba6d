"""The heads of token labels and spans on ranks beside a plain loop in one process: data, tensor, pipeline and context
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
from llmscale.layout import require_legal
from llmscale.model import Dropout
from tests.distributed.parts import SGD
from tests.distributed.test_classification import SIZES
from tests.engine.cases import GLOBAL_BATCH, LENGTH, STEPS, VOCAB, build, case_config, open_engine, own_optimizers
from tests.ranks import run_ranks

Figures = tuple[float, ...]
"""Loss and gradient norm of a step; of an evaluation its loss and measure."""

TAGS = "{name: token_classification, labels: [O, B-A, I-A], special_tokens: %s, dropout: %s}"
SPANS = "{name: span, special_tokens: %s, dropout: %s}"
BERT = {"model__family": "bert", "model__next_sentence": False}
MODELS: dict[str, dict[str, Any]] = {
    "tags bert": {**BERT, "objective": TAGS % ("cls", 0.2)},
    "tags bert without dropout": {**BERT, "objective": TAGS % ("cls", 0.0)},
    "tags gpt2": {"model__family": "gpt2", "objective": TAGS % ("eos", 0.0)},
    "spans bert": {**BERT, "objective": SPANS % ("cls", 0.2)},
    "spans llama": {"model__family": "llama", "model__kv_heads": 2, "objective": SPANS % ("eos", 0.0)},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"engine__zero_stage": 3}) for name in ("tags bert", "tags gpt2", "spans bert", "spans llama")),
    *((name, {"engine__zero_stage": stage}) for stage, name in ((1, "tags bert"), (2, "spans bert"))),
    *((name, {"parallel__tensor": 2}) for name in MODELS),
    *((name, {"parallel__tensor": 2, "parallel__sequence_parallel": True}) for name in ("tags bert", "spans llama")),
    *((name, {"parallel__pipeline": 2}) for name in MODELS),
    ("tags bert without dropout", {"parallel__context": 2}),
]
"""(model, layout on two ranks)."""


def config_of(name: str, layout: dict[str, Any]) -> RunConfig:
    return case_config(**{**SIZES, **MODELS[name], **SGD, **layout})


def batch_of(config: RunConfig, step: int) -> Batch:
    """The global batch of a step, texts of unequal lengths, of which one has no labels."""
    draw = torch.Generator().manual_seed(step)
    lengths = torch.randint(2, LENGTH + 1, (GLOBAL_BATCH, 1), generator=draw)
    places = torch.arange(LENGTH)
    real = places < lengths
    if config.objective.name == "span":
        labels = (torch.rand(GLOBAL_BATCH, 2, generator=draw) * lengths).long()
        labels[1] = -1
        weights = (labels[:, :1] >= 0).float()
    else:
        labels = torch.randint(-1, 3, (GLOBAL_BATCH, LENGTH), generator=draw).masked_fill(~real, -1)
        labels[1] = -1
        weights = (labels >= 0).float()
    encodes = config.model.architecture == "encoder"
    return Batch(
        torch.randint(VOCAB, (GLOBAL_BATCH, LENGTH), generator=draw),
        torch.zeros(weights.shape, dtype=torch.int64),
        weights,
        torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH,
        encoder_weights=real.float(),
        segment_ids=(places >= lengths // 2).long() if encodes else None,
        labels={config.objective.name: labels},
    )


def plain_loss(model: Any, batch: Batch, name: str, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
    """The mean loss, and the mean of the measure."""
    real = batch.encoder_weights > 0
    others = {"token_types": batch.segment_ids, "padding_mask": real} if model.config.architecture == "encoder" else {}
    hidden = model(batch.inputs, dropout=dropout, **others).hidden
    head, keys = getattr(model, name), None if dropout is None else dropout.for_head()
    logits, labels = head(hidden, keys), batch.labels[name]
    if name != "span":
        known = labels >= 0
        right = (logits.argmax(-1) == labels)[known].float().mean()
        return F.cross_entropy(logits[known], labels[known]), right
    logits = logits.masked_fill(~real[..., None], -torch.inf)[labels[:, 0] >= 0]
    labels = labels[labels[:, 0] >= 0]
    right = (logits.argmax(1) == labels).all(1).float().mean()
    return (F.cross_entropy(logits[..., 0], labels[:, 0]) + F.cross_entropy(logits[..., 1], labels[:, 1])) / 2, right


def plain(config: RunConfig) -> tuple[list[Figures], Figures]:
    """A plain loop: mean over the labels, clip, update; and an evaluation of one more batch."""
    model = build(config)
    [optimizer] = own_optimizers(list(model.named_parameters()), config)
    assert config.model.head is not None
    figures, name = [], config.objective.name
    for step in range(STEPS):
        batch = batch_of(config, step)
        dropout = Dropout.of(config.run.seed, batch.sample_ids) if config.model.head.dropout else None
        loss, _ = plain_loss(model, batch, name, dropout)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    with torch.no_grad():
        loss, right = plain_loss(model, batch_of(config, 99), name, None)
    return figures, (loss.item(), right.item())


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


FEW = [("tags bert", {"engine__zero_stage": 3}), ("spans bert", {"parallel__tensor": 2}),
       ("tags gpt2", {"parallel__pipeline": 2})]  # fmt: skip
"""One of each kind of layout."""


@pytest.mark.parametrize("cases", [FEW, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_two_ranks_train_as_plain_torch(cases: list[tuple[str, dict[str, Any]]]) -> None:
    configs = [config_of(name, layout) for name, layout in cases]
    for rank in run_ranks(2, train_on_rank, configs):
        for (name, layout), config, (figures, evaluated) in zip(cases, configs, rank, strict=True):
            expected, last = plain(config)
            assert figures == [pytest.approx(row, rel=1e-5) for row in expected], (name, layout)
            assert evaluated == pytest.approx(last, rel=1e-5), (name, layout)


@pytest.mark.parametrize("name", ["tags bert", "spans bert"])
def test_what_needs_whole_sequences_is_not_cut_by_positions(name: str) -> None:
    config = config_of(name, {"parallel__context": 2})
    with pytest.raises(ValueError, match=r"parallel\.context is 2"):
        require_legal(config, 2)
