"""A run that begins from a checkpoint need not say again what that is: its model, objective and tokenizer."""

import shutil
from pathlib import Path

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, identity, load_config, parse_config
from tests.tiny_run import losses, write_tiny_run
from tests.train.forked import run

WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]


def short(folder: Path, **sections: object) -> Path:
    """A config that says of model, objective and tokenizer nothing but what `sections` say."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    del settings["model"], settings["data"]["tokenizer"]
    settings.pop("objective", None)
    settings["run"]["directory"] = "tuned"
    settings["train"] |= {"init_from": "run", "steps": 4}
    path = folder / "tune.yaml"
    path.write_text(yaml.safe_dump({**settings, **sections}))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose config differs from the defaults wherever this looks."""
    folder = tmp_path_factory.mktemp("inherited")
    path = write_tiny_run(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n")
    settings = yaml.safe_load(path.read_text())
    settings["model"] |= {"family": "bert", "next_sentence": False, "norm_eps": 1e-4}
    settings["data"]["tokenizer"] = {"kind": "wordpiece", "path": "vocab.txt", "lower_case": False}
    settings["objective"] = {"name": "masked", "rate": 0.3}
    path.write_text(yaml.safe_dump(settings))
    done = run("train", "config.yaml", "train.steps=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def loaded(path: Path, *overrides: str) -> RunConfig:
    return load_config(path, overrides)


@pytest.mark.parametrize("source", ["run", "run/checkpoints", "run/checkpoints/step-00000002"])
def test_what_is_left_out_is_the_checkpoints(trained: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    theirs, path = load_config("config.yaml"), short(trained)
    found = loaded(path, f"train.init_from={source}")
    assert found.model == theirs.model
    assert found.objective == theirs.objective
    assert (found.data.tokenizer.kind, found.data.tokenizer.lower_case) == ("wordpiece", False)
    changed = loaded(path, "model.dropout=0.25", "model.max_positions=128")
    assert changed.model == theirs.model.model_copy(update={"dropout": 0.25, "max_positions": 128})
    own = loaded(path, "objective={name: masked}", "model.family=bert", "data.tokenizer.kind=bytes")
    assert (own.objective.rate, own.model.norm_eps) == (0.15, 1e-12)  # type: ignore[union-attr]
    assert own.data.tokenizer.kind == "bytes"
    classes = {"name": "classification", "labels": ["a", "b"]}
    head = loaded(short(trained, objective=classes)).model.head
    assert head is not None
    assert head.outputs == 2


def test_it_trains_and_goes_on_when_the_checkpoint_is_gone(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    short(folder)
    done = run("train", "tune.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(losses(folder / "tuned")) == 4
    shutil.rmtree(folder / "tuned")
    begun = run("train", "tune.yaml", "checkpoint.interval=2", "train.steps=2", "schedule.name=wsd", cwd=folder)
    assert begun.returncode == 0, begun.stderr
    shutil.move(folder / "run", folder / "elsewhere")
    more = run("train", "tune.yaml", "checkpoint.interval=2", "train.steps=4", "schedule.name=wsd", cwd=folder)
    assert more.returncode == 0, more.stderr
    assert len(losses(folder / "tuned")) == 4


def test_a_run_that_has_begun_keeps_what_it_has(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier releases took defaults for what was left out; such a run continues as it began."""
    monkeypatch.chdir(trained)
    path = short(trained)
    began = parse_config({**yaml.safe_load(path.read_text()), "model": {"layers": 1, "hidden_size": 16, "heads": 1}})
    own = tmp_path / "tuned"
    own.mkdir()
    stored = began.model_dump(mode="json")
    stored["data"]["tokenizer"] = {"kind": "sentencepiece"}
    (own / "config.yaml").write_text(yaml.safe_dump(stored))
    again = loaded(path, f"run.directory={own}")
    assert again.model == began.model
    assert identity(again)["data.tokenizer.kind"] == "sentencepiece"


def test_no_such_checkpoint(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(UserError, match=r"train\.init_from nowhere is no run or checkpoint, whose model this config"):
        loaded(short(trained), "train.init_from=nowhere")
