"""The pieces that global tensors are cut into: in memory (Fragment) and on disk (Piece)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmscale.slices.tensor_slice import TensorSlice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fragment:
    """A part of a global tensor that this rank holds: a flat row-major range of a rectangle of it.

    Raises:
        ValueError: the rectangle leaves the shape, the range leaves the rectangle, or the tensor is not 1-D fp32 of
            end - start elements.
    """

    name: str
    """Canonical name of the parameter."""
    kind: str
    """`weight`, or an optimizer state such as `exp_avg`."""
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
    tensor: torch.Tensor
    """(end - start,) float32, on any device."""
    kind_shape: tuple[int, ...] | None = None
    """Shape of this kind, where it is not that of the tensor: the rectangle is one of it."""

    def __post_init__(self) -> None:
        try:
            TensorSlice(self.kind_shape or self.shape, self.offsets, self.sizes, self.start, self.end)
        except ValueError as error:
            raise ValueError(f"{self.kind} of {self.name}: {error}") from None
        expected = (self.end - self.start,)
        if tuple(self.tensor.shape) != expected or str(self.tensor.dtype) != "torch.float32":
            raise ValueError(
                f"{self.kind} of {self.name} must be float32 of shape {list(expected)},"
                f" but is {self.tensor.dtype} of shape {list(self.tensor.shape)}"
            )


@dataclass(frozen=True)
class Piece:
    """Where a part of a global tensor lies on disk; offsets, sizes, start and end as in `Fragment`."""

    file: str
    """File name within the checkpoint."""
    key: str
    """Key within the safetensors file."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    end: int
