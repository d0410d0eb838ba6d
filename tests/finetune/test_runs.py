"""`llmscale train` with a `finetune` section: what becomes of each tensor, what is said, and mistakes."""

from pathlib import Path

import pytest
import torch

from llmscale.checkpoint import Checkpoint, newest_intact
from llmscale.config import ModelConfig
from llmscale.parallel.init import initial_values
from tests.train.forked import run
from tests.train.test_classification import write_run

FROM = ("train.init_from=pretrained", "train.steps=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained BERT, and rows to tune it on."""
    folder = tmp_path_factory.mktemp("finetune")
    write_run(folder)
    pretrained = ("objective={name: masked}", "model.next_sentence=false", "train.steps=2")
    done = run("train", "config.yaml", *pretrained, "run.directory=pretrained", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def same(one: Checkpoint, other: Checkpoint) -> set[str]:
    """The tensors of both that are equal to the bit."""
    names = set(one.names) & set(other.names)
    return {name for name in names if torch.equal(one.full(name), other.full(name))}


def test_only_the_head_is_trained(folder: Path) -> None:
    done = run("train", "config.yaml", *FROM, "finetune={train: head}", "run.directory=head", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, base = newest_intact(folder / "head"), newest_intact(folder / "pretrained")
    body = {name for name in base.names if not name.startswith("head.")}
    assert same(found, base) == body
    head = sum(found.full(name).numel() for name in found.names if name not in body)
    everything = sum(found.full(name).numel() for name in found.names)
    assert f"{everything:,} parameters, {head:,} of them trained" in done.stderr
    done = run("generate", "head", "--prompt", "x", cwd=folder)
    assert done.returncode == 2  # It reads as any checkpoint does, but is no language model.
    assert "continues no text" in done.stderr


def test_layers_that_are_drawn_anew(folder: Path) -> None:
    tuned = ("finetune={train: head, redraw_layers: 1}", "run.directory=redrawn", "optimizer.lr=1e-12")
    done = run("train", "config.yaml", *FROM, *tuned, "schedule.warmup_steps=0", "train.steps=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, base = newest_intact(folder / "redrawn"), newest_intact(folder / "pretrained")
    name = "blocks.1.attention.query.weight"
    model = ModelConfig.model_validate(found.manifest.config["model"])
    drawn = initial_values(model, 0, name, 0, 32 * 32).view(32, 32)
    assert torch.allclose(found.full(name), drawn, atol=1e-6)
    assert "blocks.0.attention.query.weight" in same(found, base)
    assert "blocks.1.attention.query.weight" not in same(found, base)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("finetune={train: haed}",), ["finetune.train", "'haed'", "did you mean head?"]),
        (("finetune={train: [blocks.7]}",), ["finetune.train has 'blocks.7'", "blocks.0"]),
        (("finetune={train: layers, layers: 3}",), ["finetune.layers is 3", "2 layers"]),
        (("finetune={train: head}", "train.init_from=null"), ["finetune is given", "train.init_from"]),
    ],
)
def test_mistakes(folder: Path, settings: tuple[str, ...], parts: list[str]) -> None:
    done = run("train", "config.yaml", *FROM, *settings, "run.directory=refused", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.splitlines()[-1]
    assert not (folder / "refused").exists()
