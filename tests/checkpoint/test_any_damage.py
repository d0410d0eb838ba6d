"""Any damage to any file of a checkpoint is found, and the older one is used."""

import random
import shutil
from pathlib import Path

import pytest

from llmscale.checkpoint import newest_intact
from tests.checkpoint.cases import assert_holds, saved

KINDS = ("bit", "cut", "gone", "swapped", "of another step")


def spoil(folder: Path, file: Path, kind: str, draw: random.Random) -> None:
    """Damage one file in one of the ways of `KINDS`."""
    data = bytearray(file.read_bytes())
    if kind == "bit":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "gone":
        file.unlink()
    elif kind == "swapped":
        other = draw.choice([path for path in sorted(folder.rglob("*")) if path.is_file() and path != file])
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        shutil.copy(folder.with_name("step-00000002") / file.relative_to(folder), file)


@pytest.mark.parametrize("kind", KINDS)
def test_any_file(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole/checkpoints"
    saved(whole, 2, 3)
    files = [path.relative_to(whole) for path in sorted((whole / "step-00000003").rglob("*")) if path.is_file()]
    assert {path.name for path in files} >= {"manifest.json", "cursor.json", "rank-00000.safetensors"}
    for number, file in enumerate(files * 8):
        same = (whole / "step-00000002" / file.relative_to("step-00000003")).read_bytes() == (whole / file).read_bytes()
        if kind == "of another step" and same:
            continue
        place = tmp_path / f"{number}/checkpoints"
        shutil.copytree(whole, place)
        spoil(place / "step-00000003", place / file, kind, random.Random(f"{kind} {number}"))
        warnings: list[str] = []
        assert_holds(newest_intact(place, warn=warnings.append), 2)
        assert len(warnings) == 1, (file, kind)
        shutil.rmtree(place)
