"""NaN and Inf in weights or optimizer state: never saved, never resumed, and an older state takes their place."""

import hashlib
import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmscale.checkpoint import tensor_file
from llmscale.checkpoint.manifest import encode, read_manifest
from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, Finished, run
from tests.train.runs import ledger, metrics

SETTINGS = ("train.steps=9", "checkpoint.interval=3", "checkpoint.keep=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("not_finite")
    write_tiny_run(folder)
    done = run("train", "config.yaml", *SETTINGS, "run.directory=good", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def poison(kind: str, value: float, step: int, rank: int = 0, number: int | None = None) -> None:
    """Let a rank's first element of `kind` become `value` after `step`, and a signal arrive then."""
    import torch.distributed as dist

    from llmscale.train.loop import Trainer

    one_step = Trainer.one_step

    def poisoned(trainer: Trainer) -> object:
        result = one_step(trainer)
        if trainer.state.step == step and dist.get_rank() == rank:
            next(fragment for fragment in trainer.engine.state() if fragment.kind == kind).tensor[0] = value
        if trainer.state.step == step and number is not None:
            os.kill(os.getpid(), number)
        return result

    Trainer.one_step = poisoned  # type: ignore[method-assign]


def finite(checkpoints: Path) -> dict[str, bool]:
    """Of each checkpoint, whether all numbers in it are."""
    return {
        path.name: all(np.isfinite(v).all() for file in path.glob("*.safetensors") for v in load_file(file).values())
        for path in sorted(checkpoints.glob("step-*"))
    }


def assert_kept_and_continued(folder: Path, name: str, done: Finished, step: int) -> None:
    """It ended as failed with one sentence, has the good checkpoint of `step`, and goes on from it to the same end."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("llmscale: ")
    assert json.loads((folder / name / "outcome.json").read_text())["outcome"] == "failed"
    assert finite(folder / name / "checkpoints") == {f"step-{step:08d}": True}
    again = run("train", "config.yaml", *SETTINGS, f"run.directory={name}", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert f"continuing at step {step}" in again.stderr
    assert metrics(folder / name) == metrics(folder / "good")
    assert ledger(folder / name) == ledger(folder / "good")


@pytest.mark.parametrize(
    ("kind", "value", "step", "number"),
    [
        ("weight", np.nan, 9, None),  # unseen by any step
        ("exp_avg_sq", np.inf, 8, None),  # with which every gradient stays finite
        ("weight", -np.inf, 4, signal.SIGTERM),
        ("exp_avg", np.nan, 5, signal.SIGTERM),
    ],
)
def test_such_a_state_is_not_saved(
    folder: Path, tmp_path: Path, kind: str, value: float, step: int, number: int | None
) -> None:
    name = f"bad-{kind}-{step}"
    prepare = partial(poison, kind, value, step, number=number)
    done = run("train", "config.yaml", *SETTINGS, f"run.directory={name}", cwd=folder, prepare=prepare)
    assert_kept_and_continued(folder, name, done, 3 if number else 6)


@pytest.mark.parametrize(("stage", "kind"), [(1, "weight"), (2, "exp_avg_sq"), (3, "exp_avg")])
def test_ranks_agree_that_it_is_not_saved(folder: Path, stage: int, kind: str) -> None:
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    settings = (*SETTINGS, f"run.directory=ranks-{stage}", f"engine.zero_stage={stage}")
    both = [
        Command(
            *("train", "config.yaml", *settings),
            cwd=folder,
            prepare=partial(poison, kind, np.inf, 9, rank=1),
            RANK=rank,
            LOCAL_RANK=rank,
            **place,
        )
        for rank in range(2)
    ]
    for rank, command in enumerate(both):
        done = command.finish()
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert f"{kind} of " in done.stderr.splitlines()[-1]
        assert "rank 1" in done.stderr.splitlines()[-1], rank
    assert json.loads((folder / f"ranks-{stage}" / "outcome.json").read_text())["outcome"] == "failed"
    assert finite(folder / f"ranks-{stage}" / "checkpoints") == {"step-00000006": True}


def spoil(checkpoint: Path, kind: str, value: float) -> None:
    """Put a number into a checkpoint as it would be, had it been saved so."""
    path = next(checkpoint.glob("*.safetensors"))
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    next(array for name, array in tensors.items() if name.startswith(f"{kind}/")).flat[-1] = value
    save_file(tensors, path)
    manifest = read_manifest(checkpoint)
    data = path.read_bytes()
    entry = manifest.files[path.name].model_copy(
        update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    )
    files = {**manifest.files, path.name: entry}
    (checkpoint / "manifest.json").write_bytes(encode(manifest.model_copy(update={"files": files})))


def test_such_a_checkpoint_is_not_resumed(folder: Path) -> None:
    settings = (*SETTINGS[:2], "run.directory=resumed")
    assert run("train", "config.yaml", *settings, "checkpoint.keep=9", cwd=folder).returncode == 0
    checkpoints = folder / "resumed" / "checkpoints"
    spoil(checkpoints / "step-00000009", "exp_avg", np.nan)
    spoil(checkpoints / "step-00000006", "weight", np.inf)
    (folder / "resumed" / "outcome.json").unlink()
    evaluated = run("generate", "resumed", "--prompt", "a", "--max-new-tokens", "2", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    again = run("train", "config.yaml", *settings, cwd=folder)
    assert again.returncode == 0, again.stderr
    for step, kind in ((9, "exp_avg"), (6, "weight")):
        assert f"step-{step:08d}/rank-00000.safetensors holds values that are not finite" in again.stderr
        assert f" in {kind} of " in again.stderr
    assert "continuing at step 3" in again.stderr
    assert metrics(folder / "resumed") == metrics(folder / "good")
    assert all(finite(checkpoints).values())


@pytest.mark.parametrize("place", [0, 1, 7, 4095])
def test_where_the_first_one_is(place: int) -> None:
    values = np.linspace(-1e38, 1e38, 4096, dtype=np.float32)
    assert tensor_file.first_not_finite(values.tobytes()) is None
    values[place] = np.nan
    values[-1] = np.inf
    assert tensor_file.first_not_finite(values.tobytes()) == place
