"""Encoders with pairs, encoder-decoders and experts as whole runs: two ranks give what one process gives, evaluation
included."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.base.records import read_records
from tests.distributed.cases import Case, case_config, run_cases, write_corpus
from tests.train.runs import evaluations, ledger

SIZES = "layers: 2, hidden_size: 32, heads: 2, max_positions: 32"
MODELS = {
    "pairs": {
        "model": f"{{family: bert, {SIZES}}}",
        "objective": "{name: masked, next_sentence: true}",
        "data__sources__0__document": "file",
    },
    "spans": {"model": f"{{family: t5, {SIZES}}}", "objective": "{name: denoising}"},
    "experts": {
        "model": f"{{family: wu_dao, {SIZES}, experts: {{count: 4, every: 2, capacity_factor: 1.0}}}}",
        "objective": "{name: causal}",
    },
}
TERMS = {
    "pairs": ("loss", "next_sentence_loss"),
    "spans": ("loss",),
    "experts": ("loss", "router_loss"),
}
SGD = {"optimizer__name": "sgd", "optimizer__lr": 0.1, "train__micro_batch": 3}


def rows(run: Path, names: tuple[str, ...]) -> list[list[float]]:
    found = [row for row in read_records(run / "metrics.jsonl") if "loss" in row]
    return [[row["step"], row["grad_norm"], *(row[name] for name in names)] for row in found]


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    # The documents of a pair are whole files, so that there are neighbours to pair; eight files make eight lanes.
    lanes = {"data__lanes": 8}
    single = [Case(case_config(tmp_path, name, **MODELS[name], **SGD, **lanes)) for name in MODELS]
    assert run_cases(1, single) == [[0] * len(single)]
    stages = [(name, stage) for stage in (1, 2, 3) for name in MODELS]
    cases = [
        Case(case_config(tmp_path, f"{name}-{stage}", **MODELS[name], **SGD, **lanes, engine__zero_stage=stage))
        for name, stage in stages
    ]
    assert run_cases(2, cases) == [[0] * len(cases)] * 2
    for name, stage in stages:
        found, expected = tmp_path / f"{name}-{stage}", tmp_path / name
        assert ledger(found) == ledger(expected)
        wanted = [pytest.approx(row, rel=1e-5) for row in rows(expected, TERMS[name])]
        assert rows(found, TERMS[name]) == wanted, (name, stage)
        assert evaluations(found) == [pytest.approx(row, rel=1e-5) for row in evaluations(expected)], (name, stage)
        assert len(evaluations(found)) == 3
