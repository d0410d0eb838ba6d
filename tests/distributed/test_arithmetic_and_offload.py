"""bf16, fp16 and offloaded state beside pipeline, sequence and expert parallelism, against one process in fp32."""

from typing import Any

import pytest

from llmscale.config import RunConfig
from tests.distributed import parts
from tests.engine.cases import Figures, case_config, plain_torch, train_on_rank
from tests.ranks import run_ranks

SIZES: dict[str, Any] = {
    "model__layers": 4, "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 4, "model__ffn_size": 72,
    "model__vocab_multiple": 8, "train__micro_batch": 2,
}  # fmt: skip
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}
"""Relative, of losses; twice that of norms."""
PIPELINE, SEQUENCE = {"parallel__pipeline": 2}, {"parallel__context": 2}
OFFLOAD = {"engine__offload": "optimizer"}
ZERO_2 = {"engine__zero_stage": 2}
ZERO_3 = {"engine__zero_stage": 3}
BF16, FP16 = {"engine__dtype": "bf16"}, {"engine__dtype": "fp16", "engine__initial_scale_power": 8}

CASES: dict[int, list[dict[str, Any]]] = {
    2: [
        PIPELINE | OFFLOAD,
        PIPELINE | BF16,
        PIPELINE | FP16,
        PIPELINE | BF16 | OFFLOAD,
        SEQUENCE | OFFLOAD,
        SEQUENCE | BF16,
        SEQUENCE | ZERO_2 | OFFLOAD,
        SEQUENCE | ZERO_2 | FP16,
        SEQUENCE | ZERO_3 | {"engine__offload": "optimizer_and_weights"},
        SEQUENCE | ZERO_3 | BF16,
    ],
    4: [
        PIPELINE | OFFLOAD,
        PIPELINE | BF16,
        PIPELINE | OFFLOAD | {"parallel__tensor": 2},
        PIPELINE | BF16 | OFFLOAD | {"parallel__tensor": 2},
    ],
}
EXPERTS: dict[int, list[dict[str, Any]]] = {
    2: [BF16, BF16 | ZERO_2, OFFLOAD, OFFLOAD | ZERO_2],
    4: [FP16, OFFLOAD | {"parallel__tensor": 2}, OFFLOAD | ZERO_2, BF16 | OFFLOAD],
}


def require_near(config: RunConfig, found: list[Figures], expected: list[Figures]) -> None:
    tolerance = TOLERANCE["fp32" if config.engine.dtype == "auto" else config.engine.dtype]
    what = config.parallel, config.engine
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=tolerance), what
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=2 * tolerance), what


@pytest.mark.slow
@pytest.mark.parametrize("ranks", CASES)
def test_stages_and_shared_sequences(ranks: int) -> None:
    configs = [case_config(**SIZES, **changes) for changes in CASES[ranks]]
    expected = plain_torch(case_config(**SIZES))[0]
    for config, found in zip(configs, run_ranks(ranks, train_on_rank, configs)[0], strict=True):
        require_near(config, found, expected)


@pytest.mark.parametrize(
    "ranks", [ranks if ranks == 2 else pytest.param(ranks, marks=pytest.mark.slow) for ranks in EXPERTS]
)
def test_shared_experts(ranks: int) -> None:
    configs = [parts.model_config("mixtral", parallel__expert=2, **changes) for changes in EXPERTS[ranks]]
    expected = parts.plain_loop(parts.model_config("mixtral")).figures
    for config, found in zip(configs, run_ranks(ranks, parts.train_on_rank, configs)[0], strict=True):
        require_near(config, found.figures, expected)
