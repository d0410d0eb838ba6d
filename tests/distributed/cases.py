"""Whole training runs on test ranks, in process, and where they are told to die or to have no targets."""

import gc
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data_pipeline.batch import Batch
from data_pipeline.loader import TrainLoader
from data_pipeline.stream.cursor import LedgerSum
from llmscale.config import RunConfig, parse_config
from llmscale.parity.ranks import free_port
from llmscale.train.signals import PreemptionFlag
from llmscale.train.start import train
from tests.ranks import run_ranks
from tests.tiny_run import write_tiny_run

GLOBAL_BATCH = 12
WITHOUT_TARGETS, ONE_SAMPLE = 3, 4
"""Steps (from 1) of a run with few targets: no sample of the global batch has one, or only its first sample has."""


@dataclass(frozen=True)
class Case:
    """One run on a rank, and what is done to it."""

    config: RunConfig
    few_targets: bool = False
    """Samples have very unequal numbers of targets, and the two steps above are as they say."""
    stop: tuple[int, int, signal.Signals] | None = None
    """(step, rank, signal): the rank gets the signal while it takes the samples of the step (from 1)."""
    port: int = 0


def write_corpus(folder: Path) -> None:
    """Text to train on, and documents whose evaluation set has a prime number of samples (the tests check that)."""
    write_tiny_run(folder)
    lines = (folder / "text-0.txt").read_text().splitlines()
    (folder / "heldout.txt").write_text("\n".join(lines[:21]))


def case_config(folder: Path, run: str, **changes: Any) -> RunConfig:
    """A run in `folder`; changes are dotted keys with `__` for the dot."""
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    raw["run"] |= {"directory": str(folder / run), "seed": 7}
    raw["data"] |= {"lanes": 24, "span_bytes": 1000, "evaluation": [{"paths": [str(folder / "heldout.txt")]}]}
    raw["data"]["sources"][0]["paths"] = [str(folder / "text-*.txt")]
    raw["data"]["evaluation"][0]["document"] = "line"
    raw["train"] = {"steps": 6, "global_batch": GLOBAL_BATCH, "micro_batch": 12}
    raw["optimizer"] = {"lr": 0.003, "clip": 0.5}
    raw["schedule"] = {"warmup_steps": 2}
    raw["checkpoint"] = {"interval": 0}
    raw["evaluation"] = {"interval": 2, "batch": 2, "max_samples": 7}
    return parse_config(raw, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def run_cases(ranks: int, cases: list[Case]) -> list[list[int]]:
    """Train the cases one after the other on `ranks` ranks: their exit codes on every rank."""
    ports = [replace(case, port=free_port()) for case in cases]
    return run_ranks(ranks, _train_all, ports, timeout=540)


def _train_all(cases: list[Case]) -> list[int]:
    return [_train_one(case) for case in cases]


def _train_one(case: Case) -> int:
    # A new rendezvous each time: the last one's may not have gone yet.
    os.environ["MASTER_PORT"] = str(case.port)
    taken = TrainLoader.take

    def take(loader: TrainLoader, count: int) -> tuple[Batch, LedgerSum]:
        batch, terms = taken(loader, count)
        step = int(batch.sample_ids[0]) // GLOBAL_BATCH + 1
        if case.stop and (step, int(os.environ["RANK"])) == case.stop[:2]:
            os.kill(os.getpid(), case.stop[2])
        return (with_few_targets(batch, step) if case.few_targets else batch), terms

    TrainLoader.take = take  # type: ignore[method-assign]
    try:
        with PreemptionFlag() as flag:
            return train(case.config, flag)
    finally:
        TrainLoader.take = taken  # type: ignore[method-assign]
        # The next run forks loader workers; one that collected this run's process groups would crash.
        gc.collect()


def with_few_targets(batch: Batch, step: int) -> Batch:
    """Weights that depend on nothing but the sample's number."""
    length = batch.weights.shape[1]
    kept = (batch.sample_ids * 5 % (length + 1))[:, None]
    weights = (torch.arange(length)[None] < kept).float()
    first = (batch.sample_ids % GLOBAL_BATCH == 0)[:, None]
    if step == WITHOUT_TARGETS:
        weights.zero_()
    elif step == ONE_SAMPLE:
        weights *= first
    batch.weights = weights
    return batch
