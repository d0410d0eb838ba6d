"""Runs that begin from another's checkpoint: a model section that makes another function of its weights, and what goes
along with them."""

import json
import shutil
from pathlib import Path

import pytest

from llmscale.checkpoint.model import load_model
from llmscale.checkpoint.reader import Checkpoint
from llmscale.checkpoint.store import find_checkpoints
from llmscale.config import load_config
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.train.inherited import drawn_tensors
from llmscale.train.resume import Resume
from tests.hugging_face.references import BYTES
from tests.hugging_face.test_chat_templates import DIALOGUES, NAMED, of_config, ours, theirs, write_folder
from tests.hugging_face.test_headless import written
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


@pytest.mark.parametrize(
    "other", ["model.rotary_interleaved=true", "model.rotary_fraction=0.5", "model.rotary_pattern=[true,false]"]
)
def test_rotary_positions_of_another_form_are_refused(folder: Path, other: str) -> None:
    done = run("train", "config.yaml", "train.init_from=trained", *ROTARY, other, cwd=folder)
    assert done.returncode == 2, done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("llmscale:")]
    assert f"was trained with {other.partition('=')[0]}=" in sentence
    assert "set what the checkpoint has" in sentence


def test_a_longer_context_is_a_warning(folder: Path) -> None:
    longer = ("run.directory=longer", "model.max_positions=256", "model.rotary_base=50000", "model.dropout=0.1")
    done = run("train", "config.yaml", "train.init_from=trained", *ROTARY, *longer, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: train.init_from: trained/checkpoints/step-00000001 was trained with") == 1
    assert "model.rotary_base=10000.0, but the config says model.rotary_base=50000.0" in done.stderr


def test_the_chat_templates_of_a_model_go_along(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    of_config(NAMED)(folder)
    import_directory(folder, tmp_path / "ours")
    config = load_model(tmp_path / "ours").config
    (tmp_path / "text.txt").write_text("Some words to learn from.\n" * 400)
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    settings = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {**data, "sources": [{"paths": ["text.txt"]}], "sequence_length": 16, "workers": 0, "lanes": 1},
        "model": config.model.model_dump(mode="json"),
        "train": {"steps": 1, "global_batch": 2, "init_from": "ours"},
        "evaluation": {"baselines": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    done = run("train", "config.yaml", "data.holdout=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    for name in (None, "tool_use"):
        expected = theirs(folder, DIALOGUES[1], name)
        assert ours(tmp_path / "run", DIALOGUES[1], name) == expected
        assert theirs(tmp_path / "back", DIALOGUES[1], name) == expected


def test_a_drawn_head_is_recorded_until_a_step_trains_it(tmp_path: Path) -> None:
    written("llama", tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    config = load_model(tmp_path / "ours").config
    (tmp_path / "text.txt").write_text("Some words to learn from.\n" * 400)
    settings = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            "tokenizer": {"kind": "bytes"}, "sources": [{"paths": ["text.txt"]}], "sequence_length": 16, "workers": 0,
            "lanes": 1, "holdout": 0,
        },
        "model": config.model.model_dump(mode="json"),
        "train": {"steps": 1, "global_batch": 2, "init_from": "ours"},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    done = run("train", "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = ["head.weight"]
    assert Checkpoint(tmp_path / "ours").manifest.drawn == drawn
    assert len(export_checkpoint(tmp_path / "run", tmp_path / "back")) == 1

    parsed = load_config(tmp_path / "config.yaml", ["train.init_from=" + str(tmp_path / "ours")])
    assert drawn_tensors(parsed, Resume()) == drawn
    [trained] = find_checkpoints(tmp_path / "run")
    assert drawn_tensors(parsed, Resume(Checkpoint(trained))) == []
    assert drawn_tensors(parsed, Resume(Checkpoint(tmp_path / "ours"))) == drawn

    # A copy under another number is no checkpoint of the run, whose weights are not taken either.
    shutil.copytree(tmp_path / "ours", tmp_path / "run" / "checkpoints" / "step-99999999")
    onward = load_config(tmp_path / "config.yaml", ["train.init_from=" + str(tmp_path / "run")])
    assert drawn_tensors(onward, Resume()) == []
