"""Micro batches without padding: the sums over a step are those over whole rows, and so are the gradients."""

from typing import Any

import pytest
import torch

from data_pipeline.batch import Batch
from llmscale.config import RunConfig, parse_config
from llmscale.engine.cutting import Cutting
from llmscale.engine.settings import EngineSettings
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parity.job import gradient_difference

ROWS, LENGTH, TARGETS, WORDS = 6, 20, 12, 50
LABELS = {"name": "classification", "labels": ["a", "b"], "dropout": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "bert": {"model": {"family": "bert"}, "objective": LABELS},
    "gpt2": {"model": {"family": "gpt2"}, "objective": {**LABELS, "pooling": "last"}},
    "t5": {"model": {"family": "t5"}, "objective": {"name": "seq2seq", "target_length": TARGETS}},
    "t5_label": {"model": {"family": "t5"}, "objective": {**LABELS, "pooling": "decoder"}},
    "t5_span": {"model": {"family": "t5"}, "objective": {"name": "span", "special_tokens": "decoder"}},
    "pairs": {"model": {"family": "gpt2"}, "objective": {"name": "seq2seq", "target_length": 8, "concatenate": True}},
}


def config_of(name: str, **changes: Any) -> RunConfig:
    model = {"layers": 2, "hidden_size": 16, "heads": 2, "max_positions": 32, "dropout": 0.1, "attention_dropout": 0.1}
    return parse_config(
        {
            "run": {"directory": "unused"},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": LENGTH},
            **CASES[name],
            "model": {**model, **CASES[name]["model"], **changes},
        }
    )


def batch_of(name: str) -> Batch:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([9, 3, 14, 3, 1, 11])
    real = (torch.arange(LENGTH) < lengths[:, None]).float()
    tokens = torch.randint(WORDS, (ROWS, LENGTH), generator=draw)
    numbers = torch.arange(ROWS)
    if name == "t5":
        width = torch.tensor([4, 9, 2, 9, 1, 7])
        weights = (torch.arange(TARGETS) < width[:, None]).float()
        targets = torch.randint(WORDS, (ROWS, TARGETS), generator=draw)
        return Batch(targets.roll(1, 1), targets, weights, numbers, encoder_inputs=tokens, encoder_weights=real)
    if name == "pairs":
        return Batch(tokens, tokens.roll(-1, 1), real * (torch.arange(LENGTH) > 0), numbers)
    labels = {"classification": torch.tensor([0, 1, 1, 0, 1, 0])}
    if name == "t5_span":
        labels = {"span": torch.stack([lengths // 2, lengths - 1], 1)}
    ones = torch.ones(ROWS, 1)
    if name in ("t5_label", "t5_span"):
        return Batch(
            tokens.roll(1, 1), ones.long(), ones, numbers, encoder_inputs=tokens, encoder_weights=real, labels=labels
        )
    segments = (torch.arange(LENGTH) > 4).expand(ROWS, -1).long()
    return Batch(
        tokens, ones.long(), ones, numbers, segment_ids=segments if name == "bert" else None, encoder_weights=real,
        labels=labels,
    )  # fmt: skip


def gradients(config: RunConfig, parts: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    model = init.build(config.model, WORDS, seed=1).double().train()  # so that rounding is far below the bound
    loss = build_loss(config.objective, config.model)
    total = sum(loss(model, part, Dropout.of(7, part.sample_ids))[0] for part in parts)
    total.backward()  # type: ignore[union-attr]
    return float(total.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro", [1, 2, 4, 6])
def test_sums_are_those_of_whole_rows(name: str, micro: int) -> None:
    config, batch = config_of(name), batch_of(name)
    cutting = Cutting(EngineSettings.of(config), build_loss(config.objective, config.model).heads[0])
    parts = cutting(batch, micro)
    assert sum(part.size for part in parts) == ROWS
    columns = sum(part.inputs.numel() for part in parts)
    assert columns < batch.inputs.numel()
    total, found = gradients(config, parts)
    whole, expected = gradients(config, [batch])
    assert total == pytest.approx(whole, rel=1e-5)
    assert gradient_difference(found, expected)[0] < 1e-5


def test_what_looks_at_lengths_keeps_them() -> None:
    experts = {"count": 2, "capacity_factor": 1.0}
    for config in (config_of("t5", experts=experts), config_of("bert", experts=experts)):
        cutting = Cutting(EngineSettings.of(config), build_loss(config.objective, config.model).heads[0])
        parts = cutting(batch_of("bert"), 2)
        assert [part.inputs.shape[1] for part in parts] == [LENGTH] * 3


def test_a_sample_without_tokens() -> None:
    """Fill has none."""
    config, batch = config_of("bert"), batch_of("bert")
    cutting = Cutting(EngineSettings.of(config), build_loss(config.objective, config.model).heads[0])
    batch.encoder_weights = torch.zeros(ROWS, LENGTH)
    assert [part.inputs.shape for part in cutting(batch, 3)] == [(3, 1), (3, 1)]
