"""Run directories whose checkpoints are gone, damaged, copied, renamed or another run's."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from llmscale.checkpoint.manifest import encode, read_manifest
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, Finished, run, run_many
from tests.train.runs import files_of, ledger, metrics

SETTINGS = ("train.steps=9", "checkpoint.interval=3")


def die_after(step: int) -> None:
    """Be killed after a step, once its checkpoint is on the disk."""
    from llmscale.train.loop import Trainer
    from llmscale.train.saving import Saver
    from llmscale.train.state import TrainState

    one_step, save = Trainer.one_step, Saver.save

    def at_once(saver: Saver, state: TrainState) -> None:
        save(saver, state)
        saver.wait()

    def deadly(trainer: Trainer) -> object:
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(trainer)

    Trainer.one_step = deadly  # type: ignore[method-assign]
    Saver.save = at_once  # type: ignore[method-assign]


def killed(folder: Path, name: str, step: int, *overrides: str) -> Path:
    """A run that was killed after `step`."""
    settings = (*SETTINGS, f"run.directory={name}", *overrides)
    done = Command("train", "config.yaml", *settings, cwd=folder, prepare=partial(die_after, step)).finish()
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `good` and `other`, which differ in their seed, and `stopped`, killed after step 8."""
    folder = tmp_path_factory.mktemp("lost")
    write_tiny_run(folder)
    others = (("good", ()), ("other", ("run.seed=1",)))
    for done in run_many(
        [("train", "config.yaml", *SETTINGS, f"run.directory={name}", *more) for name, more in others], folder
    ):
        assert done.returncode == 0, done.stderr
    killed(folder, "stopped", 8)
    return folder


def train(folder: Path, *names: str, flags: tuple[str, ...] = (), settings: tuple[str, ...] = ()) -> list[Finished]:
    """Start runs again that were copied."""
    return run_many(
        [("train", "config.yaml", *SETTINGS, f"run.directory={name}", *settings, *flags) for name in names], folder
    )


def assert_same_as_good(folder: Path, name: str) -> None:
    assert metrics(folder / name) == metrics(folder / "good")
    assert ledger(folder / name) == ledger(folder / "good")


def gone(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def elsewhere(run: Path) -> None:
    """A link to what is not mounted."""
    gone(run)
    (run / "checkpoints").symlink_to(run / "not" / "mounted")


def emptied(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(path)


def emptied_and_forgotten(run: Path) -> None:
    """Only where an attempt continued from is left as a trace."""
    emptied(run)
    for path in (run / "checkpoints" / "latest", run / "outcome.json"):
        path.unlink()
    with open(run / "ledger.jsonl", "a") as file:
        file.write('{"step": 6, "continues": true, "attempt": 2}\n{"step": 7, "attempt": 2}\n')


def emptied_without_outcome(run: Path) -> None:
    """Only the records tell that a checkpoint was due."""
    emptied(run)
    (run / "checkpoints" / "latest").unlink()
    text = (run / "outcome.json").read_text()
    assert '"attempt": 1' in text
    (run / "outcome.json").write_text(text.replace('"attempt": 1', '"attempt": 5'))


def emptied_before_this_version(run: Path) -> None:
    """Whose outcome.json did not say what was saved."""
    emptied(run)
    (run / "checkpoints" / "latest").unlink()
    (run / "outcome.json").write_text('{"outcome": "running", "time": 1.5, "attempt": 1}')


def damaged(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*/rank-*"):
        path.write_bytes(path.read_bytes()[:-5])


def without_manifests(run: Path) -> None:
    (run / "outcome.json").unlink()
    for path in (run / "checkpoints").glob("step-*/manifest.json"):
        path.write_bytes(b"\0" * 100)


MADE_ANEW = ("outcome.json", "config.yaml", "logs/rank-00000.log", "time.jsonl")
LOSSES = (
    *(gone, elsewhere, emptied, emptied_and_forgotten, emptied_without_outcome, emptied_before_this_version),
    *(damaged, without_manifests),
)


def test_a_run_that_lost_its_checkpoints_is_refused_until_it_is_told_to_begin_anew(folder: Path) -> None:
    names = [f"lost-{lose.__name__}" for lose in LOSSES]
    for lose, name in zip(LOSSES, names, strict=True):
        shutil.copytree(folder / "stopped", folder / name)
        lose(folder / name)
    before = {name: files_of(folder / name) for name in names}
    for _ in range(2):  # a refused start leaves no less to refuse
        for name, done in zip(names, train(folder, *names), strict=True):
            assert done.returncode == 2, (name, done.stderr)
            assert "--from-scratch" in done.stderr.splitlines()[-1]
            assert f"{name}/checkpoints" in done.stderr.splitlines()[-1]
            after = files_of(folder / name)
            kept = {path: data for path, data in before[name].items() if path not in MADE_ANEW}
            assert {path: after.get(path) for path in kept} == kept
    for name, done in zip(names, train(folder, *names, flags=("--from-scratch",)), strict=True):
        assert done.returncode == 0, (name, done.stderr)
        assert_same_as_good(folder, name)
        aside = files_of(folder / name / "aside-1")
        assert aside["ledger.jsonl"] == before[name]["ledger.jsonl"]
        assert {p for p in before[name] if p.startswith("checkpoints/step")} == {p for p in aside if "/step" in p}
    # Once more: they are done, and nothing else happens.
    for done in train(folder, *names, flags=("--from-scratch",)):
        assert (done.returncode, "is finished" in done.stderr) == (0, True)


def test_what_was_never_saved_may_begin_anew(folder: Path) -> None:
    killed(folder, "young", 2)
    [done] = train(folder, "young")
    assert done.returncode == 0, done.stderr
    assert_same_as_good(folder, "young")


def test_a_first_save_that_was_cut_short_is_no_loss(folder: Path) -> None:
    shutil.copytree(folder / "stopped", folder / "cut")
    emptied_before_this_version(folder / "cut")
    (folder / "cut" / "checkpoints" / ".tmp-step-00000003-attempt-1-save-1").mkdir()
    [done] = train(folder, "cut")
    assert done.returncode == 0, done.stderr
    assert_same_as_good(folder, "cut")


def test_from_scratch_forgets_no_intact_checkpoint(folder: Path) -> None:
    shutil.copytree(folder / "stopped", folder / "kept")
    [done] = train(folder, "kept", flags=("--from-scratch",))
    assert "continuing at step 6" in done.stderr
    assert_same_as_good(folder, "kept")


def test_a_longer_run_without_checkpoints_is_refused(folder: Path) -> None:
    flat = ("schedule.name=constant",)
    [done] = train(folder, "longer", settings=flat)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "longer" / "checkpoints")
    [done] = train(folder, "longer", settings=(*flat, "train.steps=12"))
    assert done.returncode == 2, done.stderr
    assert "has been saved at step 9" in done.stderr
    command = ("train", "config.yaml", *SETTINGS, *flat, "run.directory=longer", "train.steps=12")
    anew = run(*command, cwd=folder, LLMSCALE_FROM_SCRATCH=1)
    assert anew.returncode == 0, anew.stderr
    assert [step for step, *_ in metrics(folder / "longer")] == list(range(1, 13))


def test_a_folder_that_is_no_checkpoint_of_the_run_counts_for_nothing(folder: Path) -> None:
    """A copy under a larger, a smaller and an unusual number, a renamed one, and one of another run."""
    own = folder / "stopped" / "checkpoints" / "step-00000006"
    strangers = {
        "step-99999999": own,
        "step-00000001": own,
        "step-6": own,
        "step-00000009": folder / "other" / "checkpoints" / "step-00000009",  # in the place of one to come
        "step-00000007": folder / "stopped" / "checkpoints" / "step-00000003",
    }
    shutil.copytree(folder / "stopped", folder / "strangers")
    checkpoints = folder / "strangers" / "checkpoints"
    for name, source in strangers.items():
        shutil.copytree(source, checkpoints / name)
    [shown] = run_many([("checkpoint", "show", "strangers")], folder)
    assert shown.stdout.split()[1].endswith("step-00000006"), shown
    [done] = train(folder, "strangers", settings=("checkpoint.keep=1",))
    assert done.returncode == 0, done.stderr
    assert "continuing at step 6" in done.stderr
    for name in ("step-99999999", "step-00000009", "step-00000007"):
        assert f"skipping checkpoint: strangers/checkpoints/{name} " in done.stderr
    assert_same_as_good(folder, "strangers")
    # Its own older ones are gone by `keep`, the strangers are where they were or have made room.
    assert sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) == [
        "aside-step-00000009-1",
        "step-00000001",
        "step-00000007",
        "step-00000009",
        "step-6",
        "step-99999999",
    ]
    for name, source in strangers.items():
        place = checkpoints / ("aside-step-00000009-1" if name == "step-00000009" else name)
        assert files_of(place) == files_of(source)
    good = folder / "good" / "checkpoints" / "step-00000009" / "rank-00000.safetensors"
    assert (checkpoints / "step-00000009" / "rank-00000.safetensors").read_bytes() == good.read_bytes()


def test_a_checkpoint_of_another_run_is_not_used_by_any_command(folder: Path) -> None:
    shutil.copytree(folder / "good", folder / "read")
    other = folder / "other" / "checkpoints" / "step-00000009"
    # Signed as step 12 of the other run.
    shutil.copytree(other, folder / "read" / "checkpoints" / "step-00000012")
    later = read_manifest(other).model_copy(update={"step": 12})
    (folder / "read" / "checkpoints" / "step-00000012" / "manifest.json").write_bytes(encode(later))
    arguments = ("--data", "text-0.txt", "--json")
    first, second = run_many([("eval", name, *arguments) for name in ("read", "good")], folder)
    found, expected = json.loads(first.stdout), json.loads(second.stdout)
    assert found["checkpoint"] == "read/checkpoints/step-00000009"
    assert {**found, "checkpoint": ""} == {**expected, "checkpoint": ""}


def test_only_strangers_are_a_loss(folder: Path) -> None:
    shutil.copytree(folder / "stopped", folder / "renamed")
    for path in (folder / "renamed" / "checkpoints").glob("step-*"):
        path.rename(path.with_name(path.name.replace("step-0", "step-1")))
    done = run("train", "config.yaml", *SETTINGS, "run.directory=renamed", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "name it step-00000006" in done.stderr.splitlines()[-1]
    for path in (folder / "renamed" / "checkpoints").glob("step-*"):
        path.rename(path.with_name(path.name.replace("step-1", "step-0")))
    [done] = train(folder, "renamed")
    assert done.returncode == 0, done.stderr
    assert_same_as_good(folder, "renamed")
