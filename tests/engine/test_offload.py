"""State in the CPU's memory: on a CPU the same numbers by another path, which must train alike."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from tests.engine.cases import case_config, plain_torch, resume_all_on_rank, save_all_on_rank, train_on_rank
from tests.ranks import run_ranks

CASES = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "optimizer_and_weights")]
"""ZeRO stage and what is offloaded."""
EVEN: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 2, "model__ffn_size": 72, "model__vocab_multiple": 8
}  # fmt: skip
# Two micro batches a step, so that gradients are summed in the CPU's memory too.
OPTIMIZERS: list[dict[str, Any]] = [
    {"train__micro_batch": 2},
    {"train__micro_batch": 2, "optimizer__name": "sgd", "optimizer__lr": 0.3, "optimizer__momentum": 0.9},
]


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_offloaded_state_trains_as_one_process(tensor: int) -> None:
    cases = [(stage, offload, settings) for stage, offload in CASES for settings in OPTIMIZERS]
    configs = [
        case_config(**EVEN, engine__zero_stage=stage, engine__offload=offload, parallel__tensor=tensor, **settings)
        for stage, offload, settings in cases
    ]
    expected = [plain_torch(case_config(**EVEN, **settings))[0] for settings in OPTIMIZERS]
    for rank in run_ranks(2 * tensor, train_on_rank, configs):
        for number, (found, case) in enumerate(zip(rank, cases, strict=True)):
            assert found == [pytest.approx(figures, rel=1e-5) for figures in expected[number % 2]], case


def test_odd_sizes_on_four_ranks() -> None:
    """No partition divides evenly."""
    configs = [case_config(engine__zero_stage=stage, engine__offload=offload) for stage, offload in CASES]
    expected = plain_torch(case_config())[0]
    for rank in run_ranks(4, train_on_rank, configs):
        for found, case in zip(rank, CASES, strict=True):
            assert found == [pytest.approx(figures, rel=1e-5) for figures in expected], case


@pytest.mark.slow
def test_offloaded_state_is_saved_and_loaded(tmp_path: Path) -> None:
    """From each to each, and to and from a run that offloads nothing."""
    cases = [(1, "none"), *CASES]
    configs = [
        case_config(engine__zero_stage=stage, engine__offload=offload, optimizer__lr=0.003) for stage, offload in cases
    ]
    folders = [tmp_path / f"zero-{stage}-{offload}" for stage, offload in cases]
    saved = run_ranks(2, save_all_on_rank, list(zip(configs, folders, strict=True)), 3, 3)[0]
    for found in saved:
        assert found == [pytest.approx(figures, rel=1e-5) for figures in saved[0]]
    jobs = [(config, folder) for config in configs for folder in folders]
    others = [(config.model_copy(update={"run": config.run.model_copy(update={"seed": 99})}), f) for config, f in jobs]
    for found, (config, folder) in zip(run_ranks(2, resume_all_on_rank, others, 3, 3)[0], jobs, strict=True):
        stage = config.engine.zero_stage, config.engine.offload
        assert found == [pytest.approx(figures, rel=1e-5) for figures in saved[0]], (stage, folder.name)


def test_weights_are_offloaded_where_they_are_shared_only() -> None:
    with pytest.raises(
        UserError, match=r"engine: offload is optimizer_and_weights, but zero_stage is 2, .*zero_stage=3"
    ):
        case_config(engine__zero_stage=2, engine__offload="optimizer_and_weights")
