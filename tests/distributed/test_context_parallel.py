"""Sequence parallelism (DeepSpeed-Ulysses) on real ranks against a plain loop in one process."""

from pathlib import Path
from typing import Any

import pytest

from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from tests.distributed.cases import Case, case_config, run_cases, write_corpus
from tests.distributed.parts import DROPOUT, model_config, require_equal, train_on_rank
from tests.engine.cases import VOCAB, resume_all_on_rank, save_all_on_rank
from tests.ranks import run_ranks
from tests.train.runs import evaluations, ledger, metrics

ADAMW: dict[str, Any] = {"optimizer__name": "adamw", "optimizer__lr": 0.01}
BLOCK: dict[str, Any] = {"engine__activation_checkpointing": "block"}
SELECTIVE: dict[str, Any] = {"engine__activation_checkpointing": "selective"}
SEQUENCE_PARALLEL: dict[str, Any] = {"parallel__sequence_parallel": True}
SMOOTH: dict[str, Any] = {"model__activation": "gelu_tanh"}
"""In place of a ReLU, whose kink lets AdamW amplify rounding: on two tensor-parallel ranks alone the fifth norm differs
by 2e-5 from that of one process."""


def stage(number: int) -> dict[str, Any]:
    return {"engine__zero_stage": number}


# (ranks, sequence, tensor): the rest of the ranks is data parallelism.
CASES: dict[tuple[int, int, int], list[tuple[str, dict[str, Any]]]] = {
    (2, 2, 1): [
        ("gpt2", {}),
        ("llama", ADAMW | stage(2)),
        ("one-key-head", stage(2)),
        ("packed", SELECTIVE),
        ("prefix", {}),
        ("bert", ADAMW),
        ("modernbert", stage(2)),
        ("t5", {}),
        ("t5", ADAMW | DROPOUT | stage(2)),
        ("alibi", BLOCK),
        ("gpt2", DROPOUT | BLOCK),
        ("bert", DROPOUT | stage(3)),
        ("t5", ADAMW | stage(3)),
    ],
    (4, 2, 1): [("bert", {}), ("gpt2", DROPOUT | stage(2)), ("t5", ADAMW), ("llama", ADAMW | BLOCK | stage(3))],
    (4, 2, 2): [
        ("llama", {}),
        ("one-key-head", SEQUENCE_PARALLEL),
        ("bert", stage(2)),
        ("bert", DROPOUT | SEQUENCE_PARALLEL),
        ("t5", DROPOUT),
        ("t5", ADAMW | DROPOUT | SEQUENCE_PARALLEL | SMOOTH),
        ("alibi", ADAMW),
        ("gpt2", DROPOUT | SEQUENCE_PARALLEL | SELECTIVE),
        ("packed", stage(3)),
        ("t5", SEQUENCE_PARALLEL | stage(3)),
    ],
    (4, 4, 1): [
        ("gpt2", DROPOUT),
        ("llama", {}),
        ("one-key-head", ADAMW),
        ("bert", {}),
        ("t5", DROPOUT),
        ("alibi", {}),
    ],
}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=pytest.mark.slow if layout[0] > 2 else ()) for layout in CASES],
    ids=lambda layout: "{}-ranks-cp-{}-tp-{}".format(*layout),
)
def test_ranks_that_share_sequences_train_as_one_process(layout: tuple[int, int, int]) -> None:
    ranks, sequence, tensor = layout
    shared = {"parallel__context": sequence, "parallel__tensor": tensor}
    found = run_ranks(
        ranks, train_on_rank, [model_config(name, **shared, **changes) for name, changes in CASES[layout]]
    )
    for (name, changes), trained in zip(CASES[layout], found[0], strict=True):
        require_equal(f"{name} {changes}", model_config(name, **changes), trained)


@pytest.mark.slow
def test_compiled_layers_exchange_too() -> None:
    compiled = model_config("llama", engine__compile=True, parallel__context=2)
    require_equal("compiled", model_config("llama"), run_ranks(2, train_on_rank, [compiled], timeout=500)[0][0])


def test_checkpoints_move_between_one_process_and_ranks_that_share_sequences(tmp_path: Path) -> None:
    alone = model_config("llama", **ADAMW)
    shared = model_config("llama", **ADAMW, parallel__context=2, parallel__tensor=2)
    whole = run_ranks(1, save_all_on_rank, [(alone, tmp_path / "alone")], 2, 3)[0][0]
    moved = run_ranks(4, save_all_on_rank, [(shared, tmp_path / "shared")], 2, 3)[0][0]
    back = run_ranks(1, resume_all_on_rank, [(alone, tmp_path / "shared")], 2, 3)[0][0]
    there = run_ranks(4, resume_all_on_rank, [(shared, tmp_path / "alone")], 2, 3)[0][0]
    for figures in (moved, back, there):
        assert figures == [pytest.approx(row, rel=1e-5) for row in whole]


def test_a_whole_run_sees_the_same_samples_and_evaluates_alike(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    layouts = {"alone": {}, "shared": {"parallel__context": 2, "engine__zero_stage": 2, "data__workers": 1}}
    settings = {"optimizer__name": "sgd", "optimizer__lr": 0.3}
    for ranks, (name, layout) in zip((1, 4), layouts.items(), strict=True):
        case = Case(case_config(tmp_path, name, **settings, **layout), few_targets=True)
        assert run_cases(ranks, [case]) == [[0]] * ranks
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert ledger(shared) == ledger(alone)
    assert metrics(shared) == [pytest.approx(row, rel=1e-5) for row in metrics(alone)]
    assert len(evaluations(alone)) == 3
    assert evaluations(shared) == [pytest.approx(row, rel=1e-5) for row in evaluations(alone)]


def test_the_module_tree_of_one_rank_is_that_of_no_parallelism() -> None:
    for name in ("t5", "wu-dao"):
        config = model_config(name).model
        alone, gridded = (init.build(config, VOCAB, 0, grid=grid) for grid in (None, RankGrid(data=2, rank=1)))
        assert [(name, type(part)) for name, part in gridded.named_modules()] == [
            (name, type(part)) for name, part in alone.named_modules()
        ]
