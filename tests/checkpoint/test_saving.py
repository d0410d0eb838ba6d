"""Saving: by several processes, in the background, again, on a full disk, and what is kept."""

import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import Checkpoint, CheckpointError, Retention, clean, find_checkpoints, newest_intact
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice
from tests.checkpoint.cases import assert_holds, content, fragments, save, save_one_rank, saved, trace_operations
from tests.ranks import run_ranks


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_processes_commit_one_checkpoint(tmp_path: Path) -> None:
    assert run_ranks(4, save_one_rank, tmp_path, [3, 4]) == ["", "", "", ""]
    assert names(tmp_path) == ["latest", "step-00000003", "step-00000004"]
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    checkpoint = newest_intact(tmp_path)
    assert_holds(checkpoint, 4, world=4)
    assert_holds(Checkpoint(tmp_path / "step-00000003"), 3, world=4)
    assert checkpoint.manifest.world == 4
    assert names(checkpoint.path) == ["cursor.json", "manifest.json", *(f"rank-0000{r}.safetensors" for r in range(4))]
    # Every rank wrote its own part, and nothing else.
    assert load_file(checkpoint.path / "rank-00003.safetensors")["weight/embedding.weight"].numel() == 91 - 68


@pytest.mark.parametrize("broken", [0, 2])
def test_when_a_rank_cannot_write_all_ranks_say_so(tmp_path: Path, broken: int) -> None:
    saved(tmp_path, 3)
    errors = run_ranks(3, _save_large, tmp_path, broken)
    for error in errors:
        assert "File too large" in error
        assert f"rank {broken} has" in error
        assert "the earlier checkpoints are untouched" in error
    clean(tmp_path)
    assert names(tmp_path) == ["latest", "step-00000003"]
    assert_holds(newest_intact(tmp_path), 3)


def _save_large(directory: Path, broken: int) -> str:
    return save_one_rank(directory, [4], large_rank=broken)


def test_a_rank_that_never_comes_fails_the_save(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, rank=0, world=2, timeout=0.3)
    save(writer, 1, 0, 2)
    with pytest.raises(CheckpointError, match="still nothing of rank-00001"):
        writer.wait()
    # The rank comes after all, and is told rather than left to wait.
    late = CheckpointWriter(tmp_path, rank=1, world=2, timeout=30)
    save(late, 1, 1, 2)
    with pytest.raises(CheckpointError, match="still nothing of rank-00001"):
        late.wait()
    # The error is raised once; the next save works, with the same names.
    save(writer, 1, 0, 2)
    save(late, 1, 1, 2)
    writer.wait()
    late.wait()
    assert_holds(newest_intact(tmp_path), 1, world=2)


def test_a_rank_that_waits_in_vain_for_rank_0(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, rank=1, world=2, timeout=0.2)
    save(writer, 1, 1, 2)
    with pytest.raises(CheckpointError, match="rank 0 has not made it"):
        writer.wait()


def test_what_was_passed_may_change_afterwards(tmp_path: Path) -> None:
    """Rank 1 cannot write before rank 0 has made the folder; meanwhile its training loop overwrites everything."""
    first, second = (CheckpointWriter(tmp_path, rank=rank, world=2) for rank in range(2))
    held = list(fragments(7, 1, 2))
    cursor = {"lanes": {"1": {"offset": 8}}}
    second.save(7, held, None, cursor)
    for fragment in held:
        fragment.tensor.fill_(float("nan"))
    cursor["lanes"]["1"]["offset"] = -1
    assert second.pending
    save(first, 7, 0, 2)
    first.wait()
    second.wait()
    assert not first.pending
    assert_holds(newest_intact(tmp_path), 7, world=2)


def test_a_first_save_finds_its_memory_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = [CheckpointWriter(tmp_path, rank=rank, world=2) for rank in range(2)]
    for rank, writer in enumerate(writers):
        writer.prepare(fragments(0, rank, 2)).join()
    monkeypatch.setattr("llmscale.checkpoint.writer._host_memory", None)
    for rank, writer in enumerate(writers):
        save(writer, 7, rank, 2)
    for writer in writers:
        writer.wait()
    assert_holds(newest_intact(tmp_path), 7, world=2)


def test_saving_does_not_stop_the_caller(tmp_path: Path) -> None:
    """`save` returns although writing is stuck, here in a merge of cursors that waits for the caller."""
    released = threading.Event()

    def merge(parts: object) -> dict:
        assert released.wait(30)
        return {}

    writer = CheckpointWriter(tmp_path, merge_cursors=merge)
    save(writer, 1)
    assert writer.pending
    assert find_checkpoints(tmp_path) == []
    released.set()
    writer.wait()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001"]


def test_the_next_save_waits_and_raises_the_error_of_the_last(tmp_path: Path) -> None:
    def merge(parts: object) -> dict:
        raise ValueError("lanes of two runs")

    writer = CheckpointWriter(tmp_path, merge_cursors=merge)
    save(writer, 1)
    with pytest.raises(CheckpointError, match="lanes of two runs"):
        save(writer, 2)
    assert names(tmp_path) == []


def test_ranks_that_disagree_on_the_cursor_are_noticed(tmp_path: Path) -> None:
    writers = [CheckpointWriter(tmp_path, rank=rank, world=2) for rank in range(2)]
    for rank, writer in enumerate(writers):
        writer.save(1, [], {"samples": 0} if rank == 0 else None, {"lanes": {"0": {"offset": rank}}})
    for writer in writers:
        with pytest.raises(CheckpointError, match=r"disagree on lanes\.0\.offset of the data cursor: 0, 1"):
            writer.wait()


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, attempt=1)
    writer = CheckpointWriter(tmp_path, attempt=2)
    held = [replace(fragment, tensor=fragment.tensor + 1) for fragment in fragments(2)]
    writer.save(2, held, {"samples": 16})
    writer.wait()
    checkpoint = newest_intact(tmp_path)
    assert (checkpoint.step, checkpoint.manifest.attempt) == (2, 2)
    assert torch.equal(
        checkpoint.full("embedding.weight"), torch.from_numpy(content(2, "embedding.weight", "weight")) + 1
    )
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]


def test_retention(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 13), retention=Retention(keep=2, keep_every=5))
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (5, 10, 11, 12))]
    # A run that went back to step 5 and saves 6: what lies ahead neither counts nor is touched.
    saved(tmp_path, 6, retention=Retention(keep=1))
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (6, 10, 11, 12))]


def test_tokenizer_and_run_state_come_back(tmp_path: Path) -> None:
    model = tmp_path / "bpe.model"
    model.write_bytes(b"\x00pieces")
    writer = CheckpointWriter(tmp_path / "checkpoints", attempt=4)
    config = {"model": {"layers": 2}, "optimizer": {"betas": [0.9, 0.95], "eps": 1e-8}, "run": {"directory": "läuft"}}
    extra = {"samples": 80, "progress": {"tokens": 2**40}, "rng": {"state": 2**120}, "config": config}
    writer.save(10, fragments(10), extra, copy_files={"tokenizer.model": model})
    model.unlink()
    writer.wait()
    checkpoint = newest_intact(tmp_path)
    assert (checkpoint.tokenizer / "tokenizer.model").read_bytes() == b"\x00pieces"
    manifest = checkpoint.manifest
    assert (manifest.config, manifest.progress, manifest.rng) == (config, {"tokens": 2**40}, {"state": 2**120})
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.attempt == 4
    with pytest.raises(CheckpointError, match=r"cannot copy .*bpe\.model into the checkpoint"):
        writer.save(11, fragments(11), extra, copy_files={"tokenizer.model": model})
    with pytest.raises(ValueError, match="learning_rate"):
        writer.save(11, fragments(11), {"samples": 1, "learning_rate": 2})
    saved(tmp_path / "other", 1)
    with pytest.raises(UserError, match="saved without a tokenizer"):
        _ = newest_intact(tmp_path / "other").tokenizer


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small tmpfs needs privileges; the file-size limit stands in for it elsewhere")
    try:
        writer = saved(disk / "checkpoints", 3)
        large = Fragment("w", "weight", TensorSlice.whole((300_000,)), torch.zeros(300_000))
        writer.save(4, [large], {"samples": 0})
        with pytest.raises(
            CheckpointError, match=r"No space left on device .* 1200000 bytes to write and \d+ are free"
        ):
            writer.wait()
        assert names(disk / "checkpoints") == ["latest", "step-00000003"]
        save(writer, 5)
        writer.wait()
        assert_holds(newest_intact(disk), 5)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(tmp_path / "file" / "checkpoints")
    save(writer, 1)
    with pytest.raises(CheckpointError, match=r"cannot save step 1 in .*file/checkpoints: Not a directory"):
        writer.wait()


def test_everything_is_on_the_disk_before_it_is_named(tmp_path: Path) -> None:
    """Order against a power cut: files, their folder, the rename, the parent; only then may the older one go."""
    [trace] = run_ranks(1, trace_operations, tmp_path, [1, 2])
    published = next(i for i, op in enumerate(trace) if op[0] == "os.rename" and op[2].endswith("step-00000002"))
    temporary = trace[published][1]
    synced = [path for operation, path, _ in trace[:published] if operation == "fsync"]
    for name in names(tmp_path / "step-00000002"):
        assert f"{temporary}/{name}" in synced
    assert synced[-1] == temporary
    parent = trace.index(("fsync", str(tmp_path), ""), published)
    deleted = next(i for i, op in enumerate(trace) if op[0] == "os.rename" and op[1].endswith("step-00000001"))
    assert published < parent < deleted
    # Not more than needed: each file and each of the two folders once, and `latest`.
    per_save = len([op for op in trace if op[0] == "fsync"]) / 2
    assert per_save == len(names(tmp_path / "step-00000002")) + 3


def test_leftovers_are_cleaned_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / ".tmp-step-00000003-attempt-1-save-1").mkdir()
    (tmp_path / ".tmp-step-00000003-attempt-1-save-1" / "rank-00000.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-failed-step-00000003-attempt-1-save-1").write_text("why")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000002.replaced")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002.replaced", "step-00000001"]
    assert_holds(newest_intact(tmp_path), 2)
    clean(tmp_path)
    clean(tmp_path / "missing")
    assert names(tmp_path) == ["latest", "notes.txt", "step-00000001", "step-00000002"]
    assert_holds(newest_intact(tmp_path), 2)
