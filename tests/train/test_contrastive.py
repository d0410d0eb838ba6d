"""`llmscale train` with objective contrastive: from a pretrained encoder, its figures, and what cannot be."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmscale.checkpoint.model import load_model
from tests.train.forked import Command, run
from tests.train.runs import evaluations, ledger, metrics

TOPICS = ("sea ship wave", "bread oven flour", "诗 月 霜", "goal match team", "star moon orbit", "king queen crown")
SIZES = {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 48}


def write_run(folder: Path) -> None:
    """Pairs of texts with words of one topic, and a text of another one, as JSON lines; and a config of a BERT."""
    draw = random.Random(0)
    with open(folder / "rows.jsonl", "w") as file:
        for _ in range(300):
            topic, other = (each.split() for each in draw.sample(TOPICS, 2))
            row = {"q": " ".join(draw.choices(topic, k=3)), "p": " ".join(draw.choices(topic, k=3))}
            file.write(json.dumps({**row, "n": " ".join(draw.choices(other, k=3))}) + "\n")
    source = {"kind": "jsonl", "paths": ["rows.jsonl"], "field": "q", "target_field": "p", "fields": {"negatives": "n"}}
    config: dict[str, Any] = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [source],
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 24,
            "lanes": 4,
            "span_bytes": 2000,
            "shuffle_buffer": 16,
            "holdout": 0.2,
        },
        "model": {"family": "bert", "next_sentence": False, **SIZES},
        "objective": {"name": "contrastive", "negatives": 1, "temperature": 0.1},
        "optimizer": {"lr": 0.003},
        "schedule": {"name": "constant", "warmup_steps": 2},
        "train": {"steps": 50, "global_batch": 16, "micro_batch": 8},
        "evaluation": {"interval": 25, "batch": 16},
        "logging": {"interval": 10},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrastive")
    write_run(folder)
    masked = ("objective={name: masked}", "train.steps=2", "run.directory=pretrained", "train.global_batch=8")
    done = run("train", "config.yaml", *masked, cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run("train", "config.yaml", "train.init_from=pretrained", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_learns_and_says_how_well(folder: Path) -> None:
    first, *_, last = evaluations(folder / "run")
    assert {"loss", "accuracy", "mean_reciprocal_rank", "samples", "documents"} <= last.keys()
    assert last["loss"] < first["loss"]
    # Several pairs of a batch are of one topic, which nothing tells apart.
    assert last["accuracy"] > 0.25
    assert last["mean_reciprocal_rank"] > last["accuracy"]


def test_the_body_is_the_pretrained_one(folder: Path) -> None:
    still = ("optimizer.lr=1e-12", "train.steps=2", "run.directory=still", "train.init_from=pretrained")
    done = run("train", "config.yaml", *still, cwd=folder)
    assert done.returncode == 0, done.stderr
    before, after = (dict(load_model(folder / name).model.named_parameters()) for name in ("pretrained", "still"))
    assert after.keys() == {name for name in before if not name.startswith("head.")}
    for name, parameter in after.items():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


def test_evaluation_of_files_is_that_of_the_run(folder: Path) -> None:
    done = run("eval", "run", "--data", "rows.jsonl", "--batch", "16", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] > 0.25


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ("train.global_batch=1", "train.micro_batch=1", "objective.negatives=0"),
            "train.global_batch is 1, but objective contrastive compares each sample with the others of its global"
            " batch; set it to 2 or more, or give hard negatives (objective.negatives)",
        ),
        (("objective.pooling=max",), "objective.pooling"),
        (("objective.temperature=0",), "objective.temperature"),
        (("model.family=gpt2", "objective.pooling=first"), "whose first token sees no other"),
        (
            ("model.family=t5",),
            "trains an encoder or a decoder, but model.architecture is encoder_decoder; set model.architecture=encoder",
        ),
        (
            ("objective={name: contrastive, positives: dropout}", "model.dropout=0", "model.attention_dropout=0"),
            "objective.positives is dropout, but model.dropout and model.attention_dropout are 0",
        ),
        (("engine.dropout_layout_free=false",), "passes over each sample twice, which must drop the same"),
        (("data.sources.0.field=text",), "has no field 'text'"),
    ],
)
def test_what_cannot_be(changes: tuple[str, ...], words: str, folder: Path) -> None:
    done = run("train", "config.yaml", "run.directory=never", *changes, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipeline_is_refused() -> None:
    from data_pipeline.base.errors import UserError
    from llmscale.layout import require_legal
    from tests.engine.cases import case_config

    config = case_config(
        model__family="bert", model__next_sentence=False, parallel__pipeline=2, objective="{name: contrastive}"
    )
    with pytest.raises(UserError, match="the head contrastive compares all samples of a global batch"):
        require_legal(config, 2)


KILLS = (2, 5)
"""Steps after which it is killed."""


@pytest.mark.slow
def test_killed_in_bf16_it_goes_on_to_the_bit(folder: Path) -> None:
    """Both passes over each sample drop the same after a restart, too."""
    tuned = ("train", "config.yaml", "train.init_from=pretrained", "train.steps=8", "checkpoint.interval=3",
             "logging.interval=1", "evaluation.interval=4", "evaluation.best=accuracy",
             "model.dropout=0.1")  # fmt: skip
    half = (*tuned, "engine.dtype=bf16")
    for arguments in ((*tuned, "run.directory=single"), (*half, "run.directory=whole")):
        done = run(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    killed = folder / "killed"
    for steps in KILLS:
        command = Command(*half, "run.directory=killed", cwd=folder)
        deadline = time.monotonic() + 60
        while lines(killed / "ledger.jsonl") < steps and command.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        command.process.kill()
        command.process.join()
        assert command.process.exitcode == -signal.SIGKILL
    done = run(*half, "run.directory=killed", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert metrics(killed) == metrics(folder / "whole")
    assert ledger(killed) == ledger(folder / "whole")
    assert evaluations(killed) == evaluations(folder / "whole")
    assert best_of(killed) == best_of(folder / "whole")
    # Of the same values, which bf16 rounds.
    single, whole = (metrics(folder / name) for name in ("single", "whole"))
    assert single != whole
    for (_, loss, _), (_, rounded, _) in zip(single, whole, strict=True):
        assert rounded == pytest.approx(loss, rel=0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def best_of(run: Path) -> Any:
    newest = max((run / "checkpoints").glob("step-*"))
    return json.loads((newest / "manifest.json").read_text())["progress"]["best"]
