"""What a rank holds of global tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmscale.slices.tensor_slice import TensorSlice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fragment:
    """A slice of a global tensor, and its values.

    Raises:
        ValueError: the values are not 1-D fp32 of as many elements as the slice has.
    """

    name: str
    """Canonical name of the parameter."""
    kind: str
    """`weight`, or an optimizer state such as `exp_avg`."""
    slice: TensorSlice
    tensor: torch.Tensor
    """(slice.numel,) float32, on any device."""
    parameter_shape: tuple[int, ...] | None = None
    """Shape of the global parameter, where this kind has another, which the slice is one of."""

    def __post_init__(self) -> None:
        expected = (self.slice.numel,)
        if tuple(self.tensor.shape) != expected or str(self.tensor.dtype) != "torch.float32":
            raise ValueError(
                f"{self.kind} of {self.name} must be float32 of shape {list(expected)},"
                f" but is {self.tensor.dtype} of shape {list(self.tensor.shape)}"
            )
