"""Any range of any rectangle, from any pieces, against plain numpy indexing."""

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import Checkpoint, CheckpointError, CorruptCheckpoint
from llmscale.checkpoint.manifest import MANIFEST, Manifest, Piece, TensorEntry, encode
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice
from tests.checkpoint.cases import saved


@dataclass(frozen=True)
class Range:
    """A flat range of a rectangle."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    end: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """The reference: cut the rectangle, flatten it, cut the range."""
        region = tuple(slice(o, o + s) for o, s in zip(self.offsets, self.sizes, strict=True))
        return array[region].reshape(-1)[self.start : self.end]

    def slice_of(self, array: np.ndarray) -> TensorSlice:
        """The same in the form that is tested."""
        return TensorSlice(array.shape, self.offsets, self.sizes, self.start, self.end)

    def held(self, name: str, array: np.ndarray) -> Fragment:
        """A rank's fragment of an array."""
        return Fragment(name, "weight", self.slice_of(array), torch.from_numpy(self.of(array).copy()))


@st.composite
def ranges(draw: st.DrawFn, shape: tuple[int, ...]) -> Range:
    corners = [sorted((draw(st.integers(0, d)), draw(st.integers(0, d)))) for d in shape]
    sizes = tuple(high - low for low, high in corners)
    start, end = sorted((draw(st.integers(0, prod(sizes))), draw(st.integers(0, prod(sizes)))))
    return Range(tuple(low for low, _ in corners), sizes, start, end)


@st.composite
def partitions(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Range]:
    """Rectangles by repeated splits along any axis, each cut into flat ranges; some given twice, as replicas."""
    rectangles = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 4))):
        offsets, sizes = rectangles.pop(draw(st.integers(0, len(rectangles) - 1)))
        if not sizes:
            rectangles.append((offsets, sizes))
            continue
        axis = draw(st.integers(0, len(sizes) - 1))
        cut = draw(st.integers(0, sizes[axis]))
        rest = (*offsets[:axis], offsets[axis] + cut, *offsets[axis + 1 :])
        rectangles.append((offsets, (*sizes[:axis], cut, *sizes[axis + 1 :])))
        rectangles.append((rest, (*sizes[:axis], sizes[axis] - cut, *sizes[axis + 1 :])))
    found = []
    for offsets, sizes in rectangles:
        cuts = sorted(draw(st.lists(st.integers(0, prod(sizes)), max_size=3)))
        edges = [0, *cuts, prod(sizes)]
        found += [Range(offsets, sizes, a, b) for a, b in pairwise(edges)]
    return found + found[: draw(st.integers(0, 1))]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, Range]], list[Range]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    pieces = [(draw(st.integers(0, 2)), piece) for piece in draw(partitions(shape))]
    return shape, pieces, draw(st.lists(ranges(shape), min_size=1, max_size=8))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(layouts(), min_size=1, max_size=4))
def test_any_request_from_any_layout(cases: list) -> None:
    arrays = [
        np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, (shape, _, _) in enumerate(cases)
    ]
    with tempfile.TemporaryDirectory() as folder:
        writers = [CheckpointWriter(folder, rank=rank, world=3, timeout=30, part_bytes=400) for rank in range(3)]
        for rank, writer in enumerate(writers):
            held = [
                piece.held(f"t{i}", arrays[i])
                for i, (_, pieces, _) in enumerate(cases)
                for owner, piece in pieces
                if owner == rank
            ]
            writer.save(5, held, {"samples": 0} if rank == 0 else None)
        for writer in writers:
            writer.wait()
        with Checkpoint(Path(folder) / "step-00000005") as checkpoint:
            checkpoint.verify()
            for i, (_, _, requests) in enumerate(cases):
                np.testing.assert_array_equal(checkpoint.full(f"t{i}").numpy(), arrays[i])
                for request in requests:
                    got = checkpoint.read(f"t{i}", request.slice_of(arrays[i]))
                    np.testing.assert_array_equal(got.numpy(), request.of(arrays[i]))
                    assert torch.equal(request.slice_of(arrays[i]).of(torch.from_numpy(arrays[i])), got)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_no_rank_gave_is_noticed(data: st.DataObject) -> None:
    """Leave one piece out: it must not be saved; and a manifest without it must not be read as if it were whole."""
    shape = (4, 3, 2)
    pieces = [piece for piece in dict.fromkeys(data.draw(partitions(shape))) if piece.start < piece.end]
    assume(len(pieces) > 1)
    lost = data.draw(st.sampled_from(pieces))
    array = np.arange(24, dtype=np.float32).reshape(shape)
    held = [piece.held("t", array) for piece in pieces]
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(folder)
        writer.save(
            1, [fragment for fragment, piece in zip(held, pieces, strict=True) if piece != lost], {"samples": 0}
        )
        with pytest.raises(CheckpointError, match=r"no rank has given elements .* of weight of t"):
            writer.wait()
        writer.save(2, held, {"samples": 0})
        writer.wait()
        path = Path(folder) / "step-00000002"
        manifest = Checkpoint(path).manifest
        kept = [p for p in manifest.tensors["t"].kinds["weight"] if Range(p.offsets, p.sizes, p.start, p.end) != lost]
        rewrite(path, manifest, {"t": TensorEntry(shape=shape, kinds={"weight": kept})})
        # Noticed when it is opened, where no other piece makes up for the number of elements, else when it is read.
        with pytest.raises(CorruptCheckpoint, match=r"lacks elements .* of weight of t|weight of t is larger than its"):
            Checkpoint(path).full("t")
        with pytest.raises(CorruptCheckpoint, match="weight of t"):
            Checkpoint(path).read("t", lost.slice_of(array))


def rewrite(path: Path, manifest: Manifest, tensors: dict[str, TensorEntry]) -> None:
    (path / MANIFEST).write_bytes(encode(manifest.model_copy(update={"tensors": tensors})))


def test_a_large_tensor_is_read_by_strips_and_columns(tmp_path: Path) -> None:
    """Flat parts of 3 ranks, read as the row and column slices that tensor parallelism wants."""
    array = np.random.default_rng(0).standard_normal((1001, 517)).astype(np.float32)
    flat, whole = torch.from_numpy(array).view(-1), TensorSlice.whole(array.shape)
    cuts = [0, 150_001, 300_000, flat.numel()]
    writer = CheckpointWriter(tmp_path, part_bytes=700_000)
    writer.save(
        1,
        [Fragment("w", "weight", whole.flat_range(a, b), flat[a:b]) for a, b in pairwise(cuts)],
        {"samples": 0},
    )
    writer.wait()
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    assert len([name for name in checkpoint.manifest.files if name.startswith("rank-")]) > 1
    rows = TensorSlice.rectangle(array.shape, (500, 0), (501, 517))
    columns = TensorSlice.rectangle(array.shape, (0, 129), (1001, 129))
    assert np.array_equal(checkpoint.read("w", rows), array[500:].reshape(-1))
    assert np.array_equal(checkpoint.read("w", columns), array[:, 129:258].reshape(-1))
    half = checkpoint.read("w", columns.flat_range(60_000, 129_129))
    assert np.array_equal(half, array[:, 129:258].reshape(-1)[60_000:])


def test_other_tools_can_read_the_files(tmp_path: Path) -> None:
    """One rank's file is plain safetensors with whole tensors in their shapes."""
    from safetensors.torch import load_file

    array = torch.randn(3, 4)
    writer = CheckpointWriter(tmp_path)
    writer.save(1, [Fragment("w", "weight", TensorSlice.whole((3, 4)), array.view(-1))], {"samples": 0})
    writer.wait()
    assert torch.equal(load_file(tmp_path / "step-00000001" / "rank-00000.safetensors")["weight/w"], array)


def test_what_does_not_fit_is_refused_with_both_shapes(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    with pytest.raises(UserError, match=r"has no tensor blocks\.1\.norm\.weight"):
        checkpoint.full("blocks.1.norm.weight")
    with pytest.raises(UserError, match="no momentum_buffer of temperature, only weight, exp_avg"):
        checkpoint.full("temperature", "momentum_buffer")
    with pytest.raises(UserError, match=r"embedding\.weight has shape \[13, 7\] in .*, but \[13, 8\] in the model"):
        checkpoint.full("embedding.weight", shape=(13, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": (1, 0)}, r"rectangle \[2, 3\] at \[1, 0\] leaves the shape \[2, 3\]"),
        ({"sizes": (2,)}, "do not fit the shape"),
        ({"end": 7}, "leaves the 6 elements"),
        ({"start": 6, "end": 5}, "leaves the 6 elements"),
    ],
)
def test_a_slice_lies_within_its_tensor(change: dict, message: str) -> None:
    good = {"shape": (2, 3), "offsets": (0, 0), "sizes": (2, 3), "start": 0, "end": 6}
    assert TensorSlice(**good) == TensorSlice.whole((2, 3))
    with pytest.raises(ValueError, match=message):
        TensorSlice(**{**good, **change})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(5), r"must be float32 of shape \[6\], but is torch.float32 of shape \[5\]"),
        (torch.zeros(6, dtype=torch.bfloat16), "but is torch.bfloat16"),
    ],
)
def test_a_fragment_must_be_what_it_says(tensor: torch.Tensor, message: str) -> None:
    Fragment("w", "weight", TensorSlice.whole((2, 3)), torch.zeros(6))
    with pytest.raises(ValueError, match=message):
        Fragment("w", "weight", TensorSlice.whole((2, 3)), tensor)


def test_pieces_outside_their_tensor_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-00000001"
    manifest = Checkpoint(path).manifest
    for piece, message in [
        (Piece("rank-00000.safetensors", "weight/t", (0, 1), (2, 3), 0, 6), "leaves the shape"),
        (Piece("rank-00009.safetensors", "weight/t", (0, 0), (2, 3), 0, 6), "not among the files"),
    ]:
        rewrite(path, manifest, {"t": TensorEntry(shape=(2, 3), kinds={"weight": [piece]})})
        with pytest.raises(CorruptCheckpoint, match=message):
            Checkpoint(path)
