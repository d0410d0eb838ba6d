"""Whole runs on 2 and 4 ranks against the same run in one process, at every ZeRO stage."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.tokenizer import load_tokenizer
from llmscale.train.run_directory import RunDirectory
from tests.distributed.cases import ONE_SAMPLE, WITHOUT_TARGETS, Case, case_config, run_cases, write_corpus
from tests.train.runs import evaluations, ledger, metrics

TOLERANCE = 1e-5
"""Relative, of losses and gradient norms in fp32 within five steps of a start on another layout."""

# SGD shows errors of gradient scale, which AdamW hides; clipping is active in all.
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer__name": "sgd", "optimizer__lr": 0.3, "optimizer__momentum": 0.9},
    "few-targets": {"optimizer__name": "sgd", "optimizer__lr": 0.3},
}
# (ZeRO stage, largest micro batch, loader workers, variant) on each number of ranks: every pair of values of two
# columns that can meet is there, but for some of workers and micro batch.
LAYOUTS = {
    2: [
        (1, 1, 0, "adamw"), (1, 2, 3, "sgd"), (1, 4, 2, "few-targets"),
        (2, 3, 1, "adamw"), (2, 6, 0, "few-targets"), (2, 1, 2, "sgd"),
        (3, 2, 2, "adamw"), (3, 4, 0, "sgd"), (3, 1, 3, "few-targets"),
    ],
    4: [
        (1, 3, 1, "few-targets"), (1, 1, 2, "adamw"), (1, 3, 3, "sgd"),
        (2, 1, 3, "adamw"), (2, 2, 0, "sgd"), (2, 1, 1, "few-targets"),
        (3, 3, 0, "adamw"), (3, 1, 1, "sgd"), (3, 2, 2, "few-targets"),
    ],
}  # fmt: skip
EVERY_LAYOUT = [
    (stage, micro, workers, list(VARIANTS)[(stage + micro + workers) % len(VARIANTS)])
    for stage, micro, workers in itertools.product((1, 2, 3), (1, 2, 3), (0, 3))
]


def case(folder: Path, name: str, variant: str, **changes: Any) -> Case:
    return Case(case_config(folder, name, **VARIANTS[variant], **changes), few_targets=variant == "few-targets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and each variant trained by one process at ZeRO 1 with its whole batch at once."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    assert run_cases(1, [case(folder, variant, variant) for variant in VARIANTS]) == [[0] * len(VARIANTS)]
    return folder


def train_and_compare(folder: Path, ranks: int, layouts: list[tuple[int, int, int, str]]) -> None:
    names = [f"{ranks}-ranks-zero-{stage}-micro-{micro}-workers-{w}-{variant}" for stage, micro, w, variant in layouts]
    cases = [
        case(folder, name, variant, engine__zero_stage=stage, train__micro_batch=micro, data__workers=workers)
        for name, (stage, micro, workers, variant) in zip(names, layouts, strict=True)
    ]
    assert run_cases(ranks, cases) == [[0] * len(cases)] * ranks
    for name, (*_, variant) in zip(names, layouts, strict=True):
        found, expected = folder / name, folder / variant
        assert ledger(found) == ledger(expected), name
        assert metrics(found) == [pytest.approx(row, rel=TOLERANCE) for row in metrics(expected)], name
        assert evaluations(found) == [pytest.approx(row, rel=1e-6) for row in evaluations(expected)], name


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_train_as_one_process(folder: Path, ranks: int) -> None:
    train_and_compare(folder, ranks, LAYOUTS[ranks])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_growing_batches_and_finite_sets_train_as_in_one_process(folder: Path, ranks: int) -> None:
    """Gradient accumulation changes within the run, and the last step has samples of weight 0."""
    ramp = {"train__batch_ramp": "{start: 4, increment: 4, samples: 24}", "train__global_batch": 12}
    epochs = {"data__order": "finite", "train__epochs": 0.02}
    variants = {"ramp": {**VARIANTS["sgd"], **ramp}, "epochs": {**VARIANTS["sgd"], **epochs}}
    for name, changes in variants.items():
        assert run_cases(1, [Case(case_config(folder, f"{name}-{ranks}", **changes))]) == [[0]]
    layouts = [(name, stage) for stage in (1, 2, 3) for name in variants]
    cases = [
        Case(case_config(folder, f"{name}-{ranks}-{stage}", engine__zero_stage=stage, train__micro_batch=2, **changes))
        for name, stage in layouts
        for changes in [variants[name]]
    ]
    assert run_cases(ranks, cases) == [[0] * len(cases)] * ranks
    for name, stage in layouts:
        found, expected = folder / f"{name}-{ranks}-{stage}", folder / f"{name}-{ranks}"
        assert ledger(found) == ledger(expected), (name, stage)
        assert metrics(found) == [pytest.approx(row, rel=TOLERANCE) for row in metrics(expected)], (name, stage)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_layout_trains_as_one_process(folder: Path, ranks: int) -> None:
    train_and_compare(folder, ranks, EVERY_LAYOUT)


def test_the_references_are_what_they_should_be(folder: Path) -> None:
    """The losses fall, clipping is active, and nothing divides the evaluation set."""
    for variant in VARIANTS:
        rows = [row for row in metrics(folder / variant) if row[2]]
        clip = case_config(folder, variant).optimizer.clip
        assert all(norm > 2 * clip for _, _, norm in rows)
        assert rows[-1][1] < rows[0][1] - 0.2
        assert [row["step"] for row in evaluations(folder / variant)] == [2, 4, 6]
    config, run = case_config(folder, "adamw"), RunDirectory(folder / "adamw")
    samples = len(build_evaluation_set(config.data, load_tokenizer(run.tokenizer), run.cache))
    assert samples > 4 * config.evaluation.batch
    assert all(samples % divisor for divisor in range(2, samples)), f"{samples} samples are no prime number"


def test_a_step_without_targets_is_skipped_and_counted(folder: Path) -> None:
    rows = {step: (loss, norm) for step, loss, norm in metrics(folder / "few-targets")}
    assert rows.pop(WITHOUT_TARGETS) == (0, 0)
    assert all(loss > 1 and norm > 0 for loss, norm in rows.values())
    assert len(ledger(folder / "few-targets")) == len(rows) + 1
    summary = (folder / "few-targets/summary.json").read_text()
    assert '"skipped_steps": 1' in summary
    assert '"skipped_steps": 0' in (folder / "sgd/summary.json").read_text()
    assert ONE_SAMPLE in rows
