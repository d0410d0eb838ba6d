"""Which slice of a global tensor a rank's parameter is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llmscale.slices.tensor_slice import TensorSlice


def set_slice(parameter: nn.Parameter, rectangle: TensorSlice) -> None:
    """Say what a parameter is a part of, to us and to DeepSpeed's norm of the gradient.

    DeepSpeed adds up squares over the tensor-parallel group: of marked parameters those of all ranks, of the others
    those of its first rank only.
    """
    parameter.tensor_slice = rectangle  # type: ignore[attr-defined]
    if rectangle.cut and rectangle.first:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


def slice_of(parameter: Any) -> TensorSlice:
    """What `set_slice` said, a rectangle of the parameter's shape; a whole tensor where it said nothing."""
    # At ZeRO 3 the parameter's own shape is that of nothing.
    said = getattr(parameter, "tensor_slice", None)
    return said or TensorSlice.whole(getattr(parameter, "ds_shape", parameter.shape))


def narrow(module: nn.Module, name: str, rectangle: TensorSlice) -> None:
    """Give a module on the meta device a parameter of the rectangle's size in place of its own."""
    parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.empty(rectangle.sizes, dtype=parameter.dtype, device=parameter.device)))
