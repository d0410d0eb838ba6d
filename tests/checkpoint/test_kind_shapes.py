"""Kinds that have a shape of their own, such as a matrix's row statistics."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import Checkpoint, CheckpointError, newest_intact
from llmscale.checkpoint.commands import show
from llmscale.checkpoint.commit import merge_tensors
from llmscale.checkpoint.manifest import Piece, RankRecord, TensorEntry
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice
from tests.checkpoint.cases import assert_holds, saved

SHAPE, ROWS = (2, 3, 5), (2, 3)
WEIGHT, STATISTIC = torch.arange(30.0), torch.arange(6.0) + 100


def fragments() -> Iterator[Fragment]:
    yield Fragment("w", "weight", TensorSlice.whole(SHAPE), WEIGHT)
    # In two pieces, the second of which begins within a row.
    for start, end in ((0, 4), (4, 6)):
        yield Fragment("w", "row", TensorSlice.whole(ROWS).flat_range(start, end), STATISTIC[start:end], SHAPE)


def save(folder: Path) -> Checkpoint:
    writer = CheckpointWriter(folder)
    writer.save(1, fragments(), {"samples": 0})
    writer.wait()
    return newest_intact(folder)


def test_they_come_back_in_their_shape(tmp_path: Path) -> None:
    checkpoint = save(tmp_path)
    assert (checkpoint.shape("w"), checkpoint.shape("w", "row")) == (SHAPE, ROWS)
    assert torch.equal(checkpoint.full("w"), WEIGHT.view(SHAPE))
    assert torch.equal(checkpoint.full("w", "row", shape=ROWS), STATISTIC.view(ROWS))
    assert torch.equal(checkpoint.read("w", TensorSlice.whole(ROWS).flat_range(3, 5), "row"), STATISTIC[3:5])
    assert torch.equal(checkpoint.read("w", TensorSlice.rectangle(ROWS, (1, 1), (1, 2)), "row"), STATISTIC[4:6])
    assert "weight 30, row 6" in show(tmp_path)


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row of w has shape \[2, 3\] in .*, but \[3, 2\] in the model"):
        save(tmp_path).full("w", "row", shape=(3, 2))


def test_one_rank_gives_one_shape(tmp_path: Path) -> None:
    first, *_ = fragments()
    other = Fragment("w", "weight", TensorSlice.whole((5,)), torch.zeros(5), SHAPE)
    with pytest.raises(ValueError, match=r"w is given with two shapes, \(2, 3, 5\) and \(5,\)"):
        CheckpointWriter(tmp_path).save(1, [first, other], {"samples": 0})


def test_ranks_that_disagree_do_not_save() -> None:
    def record(shape: tuple[int, ...]) -> RankRecord:
        size = shape[0]
        piece = Piece("f", "k", (0,), shape, 0, size)
        entry = TensorEntry(shape=SHAPE, kinds={"row": [piece]}, shapes={"row": shape})
        return RankRecord(tensors={"w": entry}, files={}, cursor={})

    assert merge_tensors([record((6,)), record((6,))])["w"].shapes == {"row": (6,)}
    with pytest.raises(CheckpointError, match=r"disagree on the shape of row of w: \(6,\), \(5,\)"):
        merge_tensors([record((6,)), record((5,))])


def test_a_checkpoint_of_format_1_still_reads(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["sha256"]
    raw["format_version"] = 1
    for entry in raw["tensors"].values():
        assert entry.pop("shapes") == {}
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **raw}))
    assert_holds(newest_intact(tmp_path), 1)
