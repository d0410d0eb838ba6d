"""How often what is held out is looked at where the config does not say: seldom enough, and without changing a loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tiny_run import losses, write_tiny_run
from tests.train import forked
from tests.train.runs import evaluations


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = write_tiny_run(tmp_path, holdout=0.05)
    settings = yaml.safe_load(path.read_text())
    settings["train"] = {"steps": 145, "global_batch": 1, "micro_batch": 1}
    settings["evaluation"] = {"max_samples": 10}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
def test_an_interval_that_is_not_given_is_counted_and_changes_no_loss(config: Path, tmp_path: Path) -> None:
    default = forked.run("train", config, cwd=tmp_path)
    never = forked.run("train", config, "evaluation.interval=0", "run.directory=never", cwd=tmp_path)
    assert (default.returncode, never.returncode) == (0, 0), default.stderr + never.stderr
    looks = [row["step"] for row in evaluations(tmp_path / "run")]
    # Ten samples of a third of a step each are a fortieth of this many steps of one sample.
    assert looks == [134, 145]
    assert [row["step"] for row in evaluations(tmp_path / "never")] == [145]
    assert losses(tmp_path / "run") == losses(tmp_path / "never")
    assert evaluations(tmp_path / "run")[-1] == evaluations(tmp_path / "never")[-1]
    assert "held-out loss every 134 steps, since evaluation.interval is not given" in default.stderr
    assert "every" not in never.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("train.global_batch=8",), [100, 110]),  # not all the time, however small the set
        (("evaluation.max_samples=null",), [110]),  # a look at all of it would cost more than the run may take
        (("data.holdout=0",), []),
    ],
)
def test_how_often_follows_from_the_config(
    overrides: tuple[str, ...], steps: list[int], config: Path, tmp_path: Path
) -> None:
    done = forked.run("train", config, "train.steps=110", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in evaluations(tmp_path / "run")] == steps


def test_a_best_checkpoint_needs_an_interval(config: Path, tmp_path: Path) -> None:
    done = forked.run("train", config, "evaluation.best=loss", cwd=tmp_path)
    assert done.returncode == 2
    assert "best is 'loss', but interval is not given, so that nothing is compared; set interval" in done.stderr
