"""The one form in which the house says which part of a global tensor is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from llmscale.slices.boxes import Box, boxes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, order=True)
class TensorSlice:
    """A flat row-major range of a rectangle of a global tensor.

    A rectangle is what tensor and expert parallelism cut out; a flat range is what ZeRO cuts out of a flattened one.
    The values of a slice are a contiguous 1-D tensor of `numel` elements.

    Raises:
        ValueError: the rectangle leaves the shape, or the range leaves the rectangle.
    """

    shape: tuple[int, ...]
    """Shape of the global tensor."""
    offsets: tuple[int, ...]
    """First coordinate of the rectangle, one per dimension."""
    sizes: tuple[int, ...]
    """Extent of the rectangle, one per dimension."""
    start: int
    """First element of the range, in the row-major order of the rectangle."""
    end: int
    """End of the range, exclusive."""
    first: bool = field(default=True, compare=False)
    """Whether no rank before this one in its tensor-parallel group holds the same: only the first counts in the norm
    and writes to checkpoints."""

    def __post_init__(self) -> None:
        shape, offsets, sizes = list(self.shape), list(self.offsets), list(self.sizes)
        if not len(shape) == len(offsets) == len(sizes):
            raise ValueError(f"offsets {offsets} and sizes {sizes} do not fit the shape {shape}")
        if any(o < 0 or s < 0 or o + s > d for d, o, s in zip(shape, offsets, sizes, strict=True)):
            raise ValueError(f"the rectangle {sizes} at {offsets} leaves the shape {shape}")
        if not 0 <= self.start <= self.end <= prod(sizes):
            raise ValueError(
                f"the range [{self.start}, {self.end}) leaves the {prod(sizes)} elements of a rectangle {sizes}"
            )

    @staticmethod
    def whole(shape: Sequence[int], first: bool = True) -> TensorSlice:
        """All of a tensor."""
        return replace(TensorSlice.rectangle(shape, [0] * len(shape), shape), first=first)

    @staticmethod
    def rectangle(shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> TensorSlice:
        """All of a rectangle of a tensor."""
        return TensorSlice(tuple(shape), tuple(offsets), tuple(sizes), 0, prod(sizes))

    @property
    def numel(self) -> int:
        """Elements of the range."""
        return self.end - self.start

    @property
    def cut(self) -> bool:
        """Whether the rectangle is not the whole tensor."""
        return self.sizes != self.shape

    @property
    def origin(self) -> int | None:
        """Where the rectangle begins in the flattened tensor, if it is one range of it; else None."""
        if self.sizes[1:] != self.shape[1:]:
            return None
        return self.offsets[0] * prod(self.shape[1:]) if self.shape else 0

    @property
    def index(self) -> tuple[slice, ...]:
        """The rectangle as an index of the global tensor."""
        return tuple(slice(low, low + size) for low, size in zip(self.offsets, self.sizes, strict=True))

    def narrowed(self, dim: int, part: int, parts: int) -> TensorSlice:
        """The `part`-th of `parts` equal parts of this rectangle along `dim`."""
        assert self.sizes[dim] % parts == 0, f"{self.sizes} cannot be cut into {parts} along dim {dim}"
        size = self.sizes[dim] // parts
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[dim] += part * size
        sizes[dim] = size
        return replace(TensorSlice.rectangle(self.shape, offsets, sizes), first=self.first)

    def flat_range(self, start: int, end: int) -> TensorSlice:
        """Elements [start, end) of the same rectangle, flattened."""
        return replace(self, start=start, end=end)

    def chunk(self, number: int, size: int) -> TensorSlice:
        """The `number`-th range of `size` elements of the same rectangle, flattened, as ZeRO cuts it: the last ones are
        shorter or empty."""
        elements = prod(self.sizes)
        return self.flat_range(min(number * size, elements), min((number + 1) * size, elements))

    def boxes(self) -> list[Box]:
        """The slice as boxes of the global tensor: at most 2n - 1 for n dimensions."""
        return boxes(self.offsets, self.sizes, self.start, self.end)

    def view(self, values: Tensor, box: Box) -> Tensor:
        """A box within the slice, as a strided view of the slice's `values`."""
        assert values.is_contiguous()
        low, high = box
        strides = [prod(self.sizes[axis + 1 :]) for axis in range(len(self.sizes))]
        place = sum((a - o) * s for a, o, s in zip(low, self.offsets, strides, strict=True)) - self.start
        extent = [b - a for a, b in zip(low, high, strict=True)]
        return values.as_strided(extent, strides, values.storage_offset() + place)

    def write(self, whole: Tensor, values: Tensor) -> None:
        """Put the slice's `values` into the global tensor."""
        for low, high in self.boxes():
            whole[tuple(map(slice, low, high))].copy_(self.view(values, (low, high)))

    def of(self, whole: Tensor) -> Tensor:
        """The slice's values, from the global tensor."""
        return whole[self.index].reshape(-1)[self.start : self.end].contiguous()
