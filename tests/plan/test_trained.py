"""Optimizer memory is of what is trained."""

import math
from typing import Any

import pytest

from llmscale.config import RunConfig, parse_config
from llmscale.model import Transformer
from llmscale.plan.layout import Layout
from llmscale.plan.memory import state_bytes
from llmscale.plan.parameters import parameters
from llmscale.plan.trained import trained_counts

WORDS = 1000
MODES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"train": "all"}, ("",)),
    ({"train": "head"}, ("classification.",)),
    ({"train": "layers", "layers": 1}, ("blocks.3.", "classification.")),
    ({"train": "head", "redraw_layers": 2}, ("blocks.2.", "blocks.3.", "classification.")),
    ({"train": "encoder"}, ("blocks.", "embedding", "positions.", "token_types.")),
]
"""A section, and how the names of what it trains begin."""


def config_of(finetune: Any) -> RunConfig:
    return parse_config(
        {
            "run": {"directory": "unused"},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": 32},
            "model": {"family": "bert", "layers": 4, "hidden_size": 64, "heads": 4, "max_positions": 32},
            "objective": {"name": "classification", "labels": ["a", "b"]},
            "train": {"init_from": "other"},
            "finetune": finetune,
        }
    )


@pytest.mark.parametrize(("finetune", "names"), MODES)
@pytest.mark.parametrize("stages", [1, 2])
def test_what_is_trained_is_counted(finetune: dict[str, Any], names: tuple[str, ...], stages: int) -> None:
    config, total = config_of(finetune), 0
    for stage in range(stages):
        counts = parameters(config.model, WORDS, pipeline=stages, stage=stage)
        total += sum(trained_counts(config, counts, pipeline=stages, stage=stage).values())
    model = Transformer(config.model, WORDS)
    assert total == sum(math.prod(p.shape) for name, p in model.named_parameters() if name.startswith(names))


def test_frozen_parameters_take_no_optimizer_state() -> None:
    """Masters and AdamW's two moments in fp32."""
    config = config_of({"train": "head"})
    trained = trained_counts(config, parameters(config.model, WORDS))
    assert state_bytes(config, trained, Layout()) == 12 * (64 * 64 + 64 + 2 * 64 + 2)
