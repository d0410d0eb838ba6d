"""Weights of another run, under a model section that makes another function of them."""

from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run
from tests.train.forked import run

ROTARY = ("model.positions=rotary", "train.steps=1", "data.holdout=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init_from")
    write_tiny_run(folder)
    done = run("train", "config.yaml", "run.directory=trained", *ROTARY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_another_function_is_refused(folder: Path) -> None:
    others = ("model.heads=4", "model.activation=relu", "model.norm_eps=0.1", "model.rotary_base=500")
    done = run("train", "config.yaml", "train.init_from=trained", *ROTARY, *others, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "llmscale: train.init_from: trained/checkpoints/step-00000001 was trained with model.heads=2,"
        ' model.norm_eps=1e-05, model.activation="gelu_tanh", but the config says model.heads=4, model.norm_eps=0.1,'
        ' model.activation="relu"; set what the checkpoint has'
    )
    assert not list((folder / "run" / "checkpoints").glob("step-*"))


def test_a_longer_context_is_a_warning(folder: Path) -> None:
    longer = ("run.directory=longer", "model.max_positions=256", "model.rotary_base=50000", "model.dropout=0.1")
    done = run("train", "config.yaml", "train.init_from=trained", *ROTARY, *longer, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: train.init_from: trained/checkpoints/step-00000001 was trained with") == 1
    assert "model.rotary_base=10000.0, but the config says model.rotary_base=50000.0" in done.stderr
