"""Slices of tensors against lists of their coordinates."""

import itertools
import random

import pytest
import torch

from llmscale.slices.tensor_slice import TensorSlice

SHAPES = [(), (5,), (4, 3), (1, 6), (3, 4, 2), (2, 1, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_its_coordinates(shape: tuple[int, ...]) -> None:
    choose = random.Random(0)
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    for _ in range(100):
        offsets = tuple(choose.randint(0, size - 1) for size in shape)
        sizes = tuple(choose.randint(1, size - low) for size, low in zip(shape, offsets, strict=True))
        rows = [range(low, low + size) for low, size in zip(offsets, sizes, strict=True)]
        coordinates = list(itertools.product(*rows))
        start, end = sorted(choose.randint(0, len(coordinates)) for _ in range(2))
        held = TensorSlice.rectangle(shape, offsets, sizes).flat_range(start, end)
        expected = [float(whole[place]) for place in coordinates[start:end]]
        assert held.numel == len(expected)
        assert held.of(whole).tolist() == expected
        if held.origin is not None:
            assert whole.view(-1)[held.origin + start : held.origin + end].tolist() == expected
        written = torch.full(shape, -1.0)
        held.write(written, held.of(whole))
        inside = set(coordinates[start:end])
        for place in itertools.product(*map(range, shape)):
            assert written[place] == (whole[place] if place in inside else -1)


def test_parts_along_a_dim_are_those_of_torch() -> None:
    whole = torch.arange(48.0).view(4, 6, 2)
    for part, expected in enumerate(whole.chunk(3, dim=1)):
        narrowed = TensorSlice.whole(whole.shape).narrowed(1, part, 3)
        assert torch.equal(whole[narrowed.index], expected)
        again = narrowed.narrowed(0, 1, 2)
        assert torch.equal(again.of(whole), expected[2:].flatten())
        assert again.cut


def test_chunks_are_a_partition() -> None:
    held = TensorSlice.rectangle((7, 5), (1, 2), (4, 3))
    flat = torch.arange(12)
    for size in (1, 4, 5, 12, 20):
        ranges = [held.chunk(number, size) for number in range(14)]
        assert [flat[own.start : own.end].tolist() for own in ranges if own.numel] == [
            part.tolist() for part in flat.split(size)
        ]
