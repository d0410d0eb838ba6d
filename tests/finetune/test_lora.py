"""`llmscale train` with `finetune.lora`: what checkpoints hold, what reads them, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.base.records import read_records
from llmscale.checkpoint import newest_intact
from tests.tiny_run import losses, write_tiny_run
from tests.train.forked import Finished, run, run_on_ranks
from tests.train.test_classification import write_run

SHAPE = (
    "model.family=llama",
    "model.heads=4",
    "model.kv_heads=2",
    "optimizer.lr=0.01",
    "schedule={name: constant, warmup_steps: 0}",
)
LORA = "finetune={lora: {rank: 4, targets: [all], dora: true}}"


def train(folder: Path, *settings: str) -> Finished:
    done = run("train", "config.yaml", *SHAPE, *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained decoder, and a run from it that trained factors."""
    folder = tmp_path_factory.mktemp("lora")
    write_tiny_run(folder)
    train(folder, "run.directory=base", "train.steps=4")
    train(folder, LORA, "train.init_from=base", "run.directory=tuned", "checkpoint.interval=3")
    return folder


def test_a_checkpoint_holds_the_base_and_the_factors(folder: Path) -> None:
    base, found = newest_intact(folder / "base"), newest_intact(folder / "tuned")
    factors = {name for name in found.names if name.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude")}
    assert set(found.names) == set(base.names) | factors
    assert len(factors) == 2 * 7 * 3
    for name in base.names:
        assert torch.equal(base.full(name), found.full(name)), name
        assert found.kinds(name) == ["weight"]
    assert all(sorted(found.kinds(name)) == ["exp_avg", "exp_avg_sq", "weight"] for name in factors)


def test_a_run_begins_as_the_model_that_it_starts_from(folder: Path) -> None:
    train(folder, "train.init_from=base", "run.directory=plain", "train.steps=1")
    assert losses(folder / "tuned")[1] == pytest.approx(losses(folder / "plain")[1], rel=1e-6)
    assert losses(folder / "tuned")[6] < losses(folder / "tuned")[1]


@pytest.mark.slow
def test_it_resumes_to_the_bit_and_in_another_layout(folder: Path) -> None:
    how = (LORA, "train.init_from=base", "checkpoint.interval=3")
    for layout in ("again", "tensor"):
        train(folder, *how, f"run.directory={layout}", "train.steps=3")
    train(folder, *how, "run.directory=again", "train.steps=6")
    assert losses(folder / "again") == losses(folder / "tuned")
    one, other = newest_intact(folder / "again"), newest_intact(folder / "tuned")
    assert all(torch.equal(one.full(name), other.full(name)) for name in other.names)
    settings = (*SHAPE, *how, "run.directory=tensor", "train.steps=6", "parallel.tensor=2")
    done = run_on_ranks(2, "train", "config.yaml", *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    found, expected = losses(folder / "tensor"), losses(folder / "tuned")
    assert found == {step: pytest.approx(loss, rel=1e-5) for step, loss in expected.items()}


@pytest.mark.slow
def test_everything_that_reads_checkpoints_reads_it(folder: Path) -> None:
    prompt = ("--prompt", "abc", "--max-new-tokens", "8", "--temperature", "0")
    merged = run("checkpoint", "merge", "tuned", "merged", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    assert "largest difference of the outputs for a probe is" in merged.stdout + merged.stderr
    said = []
    for model in ("tuned", "merged"):
        written = run("generate", model, *prompt, cwd=folder)
        assert written.returncode == 0, written.stderr
        shown = run("eval", model, "--data", "text-0.txt", cwd=folder)
        assert shown.returncode == 0, shown.stderr
        said.append((written.stdout, shown.stdout.partition(": ")[2]))
    assert said[0] == said[1]


@pytest.mark.slow
def test_what_starts_from_it(folder: Path) -> None:
    # A plain run has the factors in its weights.
    train(folder, "train.init_from=tuned", "run.directory=whole", "train.steps=1")
    train(folder, LORA, "train.init_from=tuned", "run.directory=further", "train.steps=1")
    first = [losses(folder / name)[1] for name in ("whole", "further")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert set(newest_intact(folder / "whole").names) == set(newest_intact(folder / "base").names)
    other = LORA.replace("rank: 4", "rank: 2")
    done = run("train", "config.yaml", *SHAPE, other, "train.init_from=tuned", "run.directory=other", cwd=folder)
    assert done.returncode == 2
    for part in ("finetune.lora.rank=4", "config says 2", "llmscale checkpoint merge"):
        assert part in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_head_of_a_task_is_trained_beside(tmp_path: Path) -> None:
    write_run(tmp_path)
    masked = ("objective={name: masked}", "model.next_sentence=false", "train.steps=2", "run.directory=base")
    assert run("train", "config.yaml", *masked, cwd=tmp_path).returncode == 0
    lora = "finetune={lora: {rank: 2, targets: [query, value]}}"
    done = run("train", "config.yaml", lora, "train.init_from=base", "run.directory=tuned", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = newest_intact(tmp_path / "tuned")
    trained = {name for name in found.names if found.kinds(name) != ["weight"]}
    assert {name for name in trained if ".lora_" not in name} == {
        n for n in found.names if n.startswith("classification.")
    }
    assert len([name for name in trained if ".lora_" in name]) == 2 * 2 * 2
    exported = run("export", "tuned", "adapter", "--adapter", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "classifier" in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ("finetune.lora={rank: 33}", ["finetune.lora.rank is 33", "32 inputs", "rank=32"]),
        ("finetune.lora={rank: 17}", ["finetune.lora.rank is 17", "32 inputs and 16 outputs", "rank=16"]),
        ("finetune.lora={targets: [qerry]}", ["finetune.lora.targets has 'qerry'", "query"]),
        ("finetune.lora={targets: [embedding]}", ["finetune.lora.targets has 'embedding'", "no linear layer"]),
        ("finetune.lora={targets: []}", ["finetune.lora.targets", "at least 1"]),
        ("finetune.lora={dropout: 1}", ["finetune.lora.dropout", "less than 1"]),
        ("finetune.lora={alpha: 0}", ["finetune.lora.alpha", "greater than 0"]),
        ("finetune.lora={rnak: 4}", ["finetune.lora.rnak", "rank"]),
        ("model.lora={rank: 4}", ["model.lora", "finetune.lora"]),
    ],
)
def test_mistakes(folder: Path, settings: str, parts: list[str]) -> None:
    done = run("train", "config.yaml", *SHAPE, "train.init_from=base", settings, "run.directory=refused", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.splitlines()[-1]
    assert not (folder / "refused").exists()


def test_steps_say_how_much_is_trained(folder: Path) -> None:
    found = newest_intact(folder / "tuned")
    trained = sum(found.full(name).numel() for name in found.names if found.kinds(name) != ["weight"])
    summary = json.loads((folder / "tuned" / "summary.json").read_text())
    assert summary["trained_parameters"] == trained
    assert list(read_records(folder / "tuned" / "metrics.jsonl"))
