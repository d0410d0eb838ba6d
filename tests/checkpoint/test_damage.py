"""Damaged files: named, and passed over for an older checkpoint; and the two commands."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import Checkpoint, CorruptCheckpoint, find_checkpoints, newest_intact
from llmscale.checkpoint.commands import show, verify
from llmscale.checkpoint.manifest import FORMAT_VERSION, encode
from tests.checkpoint.cases import assert_holds, save_one_rank, saved
from tests.ranks import run_ranks

DATA = "rank-00000.safetensors"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in the data": (lambda p: flip(p / DATA, -3), f"{DATA} is damaged: its SHA-256"),
    "a flipped bit in the header": (lambda p: flip(p / DATA, 30), f"{DATA} is damaged: its SHA-256"),
    "a file cut short": (lambda p: cut(p / DATA), f"{DATA} has .* bytes instead of"),
    "an empty file": (lambda p: (p / DATA).write_bytes(b""), f"{DATA} has 0 bytes instead of"),
    "a file gone": (lambda p: (p / DATA).unlink(), f"{DATA} is missing"),
    "a folder for a file": (lambda p: ((p / DATA).unlink(), (p / DATA).mkdir()), f"{DATA} .*"),
    "the cursor changed": (lambda p: flip(p / "cursor.json", 12), r"cursor\.json is damaged"),
    "half a manifest": (lambda p: halve(p / "manifest.json"), r"manifest\.json is not valid JSON"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text(""), r"manifest\.json is not valid JSON"),
    "a manifest of another kind": (lambda p: (p / "manifest.json").write_text("[1]"), "has no format_version"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), r"cannot read .*manifest\.json: No such file"),
    "zeros for a manifest": (lambda p: (p / "manifest.json").write_bytes(bytes(500)), "is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_older_one_is_taken_and_the_reason_given(tmp_path: Path, damage: str) -> None:
    checkpoints = tmp_path / "checkpoints"
    saved(checkpoints, 1, 2, 3)
    break_it, reason = DAMAGE[damage]
    break_it(checkpoints / "step-00000003")
    warnings: list[str] = []
    checkpoint = newest_intact(tmp_path, warn=warnings.append)
    assert_holds(checkpoint, 2)
    assert len(warnings) == 1
    assert re.search(f"^skipping checkpoint step-00000003: .*{reason}", warnings[0])
    with pytest.raises(CorruptCheckpoint, match=reason):
        verify(checkpoints / "step-00000003")
    # Going on repairs it: the step is saved again.
    saved(checkpoints, 3)
    assert_holds(newest_intact(tmp_path), 3)


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-00000001"
    good = (path / "manifest.json").read_bytes()
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 7
        (path / "manifest.json").write_bytes(bytes(changed))
        with pytest.raises(CorruptCheckpoint):
            Checkpoint(path)


@pytest.mark.parametrize("content", ["", "step-00000009\n", "\x00\x00", None])
def test_latest_may_be_anything(tmp_path: Path, content: str | None) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_text(content)
    assert_holds(newest_intact(tmp_path), 2)


def test_nothing_intact_names_every_reason(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    cut(tmp_path / "step-00000001" / DATA)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"step-00000002/manifest\.json.*; .*step-00000001/rank"):
        newest_intact(tmp_path)


def test_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        newest_intact(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint or run directory .*missing"):
        newest_intact(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        show(tmp_path)


def test_a_newer_format_is_not_taken_for_damage(tmp_path: Path) -> None:
    """Falling back in silence would lose what the newer version has trained."""
    saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002"
    newer = Checkpoint(path).manifest.model_copy(update={"format_version": FORMAT_VERSION + 1})
    (path / "manifest.json").write_bytes(encode(newer))
    with pytest.raises(
        UserError, match=rf"format_version {FORMAT_VERSION + 1}, but .* up to {FORMAT_VERSION}"
    ) as caught:
        newest_intact(tmp_path)
    assert not isinstance(caught.value, CorruptCheckpoint)


def test_a_file_name_may_not_leave_the_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-00000001"
    manifest = Checkpoint(path).manifest
    files = {"../../secret": manifest.files[DATA], **manifest.files}
    (path / "manifest.json").write_bytes(encode(manifest.model_copy(update={"files": files})))
    with pytest.raises(CorruptCheckpoint, match=r"'\.\./\.\./secret' leaves the checkpoint"):
        Checkpoint(path)


def test_ranks_share_the_verification(tmp_path: Path) -> None:
    run_ranks(4, save_one_rank, tmp_path, [1])
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    read: list[list[tuple[int, int]]] = [[], [], []]
    for index in range(3):
        checkpoint.verify(share=(index, 3), progress=lambda done, total, index=index: read[index].append((done, total)))
        assert read[index][-1][0] == read[index][-1][1]
    assert sum(part[-1][1] for part in read) == sum(entry.bytes for entry in checkpoint.manifest.files.values())
    flip(checkpoint.path / "rank-00002.safetensors", -1)
    failed = []
    for index in range(3):
        try:
            checkpoint.verify(share=(index, 3))
        except CorruptCheckpoint as error:
            failed.append(str(error))
    assert len(failed) == 1
    assert "rank-00002.safetensors is damaged" in failed[0]


def test_verify_names_every_bad_file(tmp_path: Path) -> None:
    run_ranks(3, save_one_rank, tmp_path / "checkpoints", [1, 2])
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints" / "step-00000002").iterdir())
    manifest = (tmp_path / "checkpoints" / "step-00000002" / "manifest.json").stat().st_size
    text = verify(tmp_path)
    assert "step-00000002 is intact: step 2, 4 files" in text
    assert f"{size - manifest:,} bytes" in text
    flip(tmp_path / "checkpoints" / "step-00000002" / "rank-00001.safetensors", -1)
    (tmp_path / "checkpoints" / "step-00000002" / "rank-00002.safetensors").unlink()
    with pytest.raises(
        CorruptCheckpoint, match=r"rank-00001\.safetensors is damaged.*; .*rank-00002\.safetensors is miss"
    ):
        verify(tmp_path)
    assert "step 1" in verify(tmp_path / "checkpoints" / "step-00000001")


def test_show(tmp_path: Path) -> None:
    run_ranks(2, save_one_rank, tmp_path / "checkpoints", [1, 1200])
    lines = dict(line.split(None, 1) for line in show(tmp_path).splitlines() if len(line.split(None, 1)) == 2)
    assert lines["checkpoint"].endswith("step-00001200")
    assert lines["step"] == "1,200"
    assert lines["samples"] == "9,600"
    assert lines["tensors"] == "4 in 14 pieces"
    assert lines["parameters"] == str(13 * 7 + 7 + 3 * 2 * 5 + 1)
    assert lines["stored"] == "weight 129, exp_avg 129"
    assert lines["written"] == "by  2 ranks, attempt 1"
    assert "torch 2." in lines["versions"]
    assert lines["model.layers"] == "2"
    data = tmp_path / "checkpoints" / "step-00001200" / "rank-00001.safetensors"
    assert f"{data.stat().st_size:,} bytes" in lines["rank-00001.safetensors"]


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    raw = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
    [piece] = raw["tensors"]["blocks.0.conv"]["kinds"]["exp_avg"]
    assert piece == {
        "file": DATA,
        "key": "exp_avg/blocks.0.conv",
        "offsets": [0, 0, 0],
        "sizes": [3, 2, 5],
        "start": 0,
        "end": 30,
    }
