"""Manifests whose digest is right and whose contents are not: somebody made them so."""

import copy
import json
import os
import random
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import Checkpoint, CorruptCheckpoint, newest_intact
from llmscale.checkpoint.commands import show
from llmscale.checkpoint.manifest import _digest
from tests.checkpoint.cases import assert_holds, saved

VALUES: list[Any] = [
    None, True, -1, 2**63, 10**400, 1.5, float("nan"), "", "x", "../../x", "/etc/passwd", "a\0b", "a\x1b[2J", "\ud800",
    [], [[]], {}, {"": {}}, [-1], [2**40], [2**40] * 3, [1] * 100, {"x": 1}, "0" * 64, [[[[[[]]]]]],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything within a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def sign(folder: Path, body: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps({"sha256": _digest(body), **body}))


@pytest.fixture
def memory_bounded() -> Iterator[None]:
    """A gigabyte more than what there is, so that an allocation by a hostile number fails at once."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("memory_bounded")
def test_every_field_with_values_of_every_kind(tmp_path: Path) -> None:
    """Whatever a field is replaced by, the older checkpoint is taken, or this one holds what it says it holds."""
    checkpoints = tmp_path / "checkpoints"
    saved(checkpoints, 1, 2)
    newest = checkpoints / "step-00000002"
    whole = json.loads((newest / "manifest.json").read_text())
    whole.pop("sha256")
    draw = random.Random(14)
    older = 0
    for path in places(whole):
        for value in draw.sample(VALUES, 2):
            body = copy.deepcopy(whole)
            node = body
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            sign(newest, body)
            try:
                taken = newest_intact(tmp_path, warn=lambda _: None)
                show(taken.path)
                for name in taken.names:
                    for kind in taken.kinds(name):
                        assert taken.full(name, kind).numel() <= 13 * 7
            except (UserError, CorruptCheckpoint):
                continue
            older += taken.step == 1
    assert older > 120


def _grow(shape: list[int]) -> Callable[[dict[str, Any]], object]:
    def change(body: dict[str, Any]) -> None:
        entry = body["tensors"]["embedding.weight"]
        entry["shape"] = shape
        for pieces in entry["kinds"].values():
            end = 1
            for size in shape:
                end *= size
            pieces[0].update(offsets=[0] * len(shape), sizes=shape, start=0, end=end)

    return change


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file outside": lambda body: body["files"].update({"../step-00000001/cursor.json": body["files"]["cursor.json"]}),
    "an absolute file": lambda body: body["files"].update({"/etc/hostname": body["files"]["cursor.json"]}),
    "a file name that no file can have": lambda body: body["files"].update({"a\0b": body["files"]["cursor.json"]}),
    "a shape whose product is beyond 64 bits": _grow([2**40, 2**40]),
    "a tensor of an exabyte": _grow([2**58]),
    "a tensor larger than its pieces": lambda body: body["tensors"]["embedding.weight"].update(shape=[2**30, 7]),
    "a negative offset": lambda body: body["tensors"]["temperature"]["kinds"]["weight"][0].update(start=-1),
    "a step of 300 digits": lambda body: body.update(step=10**300),
    "a config of 900 levels": lambda body: body.update(config=json.loads('{"a":' * 900 + "1" + "}" * 900)),
    "an identity of 60 levels": lambda body: body.update(identity=json.loads('{"a":' * 60 + "1" + "}" * 60)),
    "no world": lambda body: body.update(world=0),
    "no cursor": lambda body: body["files"].pop("cursor.json"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_signed_lie_costs_one_checkpoint(tmp_path: Path, lie: str) -> None:
    saved(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    body = json.loads((newest / "manifest.json").read_text())
    body.pop("sha256")
    LIES[lie](body)
    sign(newest, body)
    if lie == "no cursor":
        with pytest.raises(CorruptCheckpoint, match=r"cursor\.json"):
            Checkpoint(newest).cursor()
        return
    with pytest.raises(CorruptCheckpoint, match="step-00000002"):
        Checkpoint(newest)
    warnings: list[str] = []
    assert_holds(newest_intact(tmp_path, warn=warnings.append), 1)
    assert len(warnings) == 1
    assert "\0" not in warnings[0]


def test_a_key_that_is_there_twice_is_no_manifest(tmp_path: Path) -> None:
    """Its digest would be that of the last one only."""
    saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / "manifest.json"
    text = path.read_text()
    assert '"temperature": {' in text
    path.write_text(text.replace('"temperature": {', '"temperature": {"shape": [9]}, "temperature": {', 1))
    assert_holds(newest_intact(tmp_path, warn=lambda _: None), 1)


@pytest.mark.parametrize("depth", [900, 5_000, 200_000])
def test_a_nested_manifest(tmp_path: Path, depth: int) -> None:
    saved(tmp_path, 1, 2)
    text = '{"format_version": 2, "sha256": "", "config": ' + '{"a":' * depth + "1" + "}" * (depth + 1)
    (tmp_path / "step-00000002" / "manifest.json").write_text(text)
    assert_holds(newest_intact(tmp_path, warn=lambda _: None), 1)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


@pytest.mark.parametrize("name", ["manifest.json", "cursor.json", "rank-00000.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, _socket, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    (newest / name).unlink()
    make(newest / name)
    if name != "manifest.json":  # and says that it is empty, as such a file does
        body = json.loads((newest / "manifest.json").read_text())
        body.pop("sha256")
        body["files"][name]["bytes"] = 0
        if name.startswith("rank"):
            body["tensors"] = {}
        sign(newest, body)
    assert_holds(newest_intact(tmp_path, warn=lambda _: None), 1)
