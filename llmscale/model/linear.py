"""Products with a weight, by whichever of torch's two libraries is the faster one on the processor.

On CPUs torch hands fp32 products to the BLAS it was built with, which is MKL. On processors that are not Intel's MKL
does not use AVX-512; oneDNN, which torch has too, does, and takes less than half of the time there (docs/log.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch.autograd.function import once_differentiable

_CPU_INFO = Path("/proc/cpuinfo")


def _onednn_is_faster() -> bool:
    has = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    if not has or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        with _CPU_INFO.open() as lines:
            maker = next(line for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        return False
    return "GenuineIntel" not in maker


ONEDNN_IS_FASTER = _onednn_is_faster()
"""Whether oneDNN multiplies fp32 matrices faster here than MKL: it can use AVX-512, and MKL does not."""


class Addition(Protocol):
    """What is added to the weight of a layer (`llmscale.model.low_rank`)."""

    def __call__(self, module: Any, input: Tensor, weight: Tensor, projected: Tensor) -> Tensor:
        """What the layer makes of its input in all, but for the bias; `projected`: the input times the weight."""

    def grouped(self, module: Any, tokens: Tensor, projected: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """The same of experts, whose arguments are those of `ExpertLinear.forward`."""

    def whole_weight(self, module: Any) -> Tensor:
        """What the input is multiplied with in all."""

    def lend(self, dropout: Any) -> None:
        """Say what the passes from now on drop: a `LayerDropout`, or None."""


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    low_rank: Addition | None = None
    """What is added to the weight, where it has factors (`llmscale.model.low_rank`)."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.low_rank is None:
            return linear(input, self.weight, self.bias)
        projected = self.product(input, self.weight)
        return projected if self.bias is None else projected + self.bias

    def product(self, input: Tensor, weight: Tensor) -> Tensor:
        """`forward` without the bias; `weight`: its own, as it is to enter the graph."""
        projected = linear(input, weight)
        return projected if self.low_rank is None else self.low_rank(self, input, weight, projected)

    def whole_weight(self) -> Tensor:
        """(outputs, inputs): what the input is multiplied with in all."""
        return self.weight if self.low_rank is None else self.low_rank.whole_weight(self)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear up to rounding.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs), of any strides.
        bias: (outputs,).

    Returns:
        (..., outputs).
    """
    differs = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias))
    if not differs or not may_choose(x, weight):
        return product(x, weight, bias)
    # As rows, since results of more dimensions are views, which could not be changed in place.
    rows = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], weight.shape[0])


def may_choose(x: Tensor, weight: Tensor) -> bool:
    """Whether there are two libraries for the product of these.

    What autograd records may depend on this alone. It is the same on all ranks, which must find their gradients in the
    same order, since DeepSpeed sums them in that order; which library is faster and whether there are rows is not.
    """
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of these is left to oneDNN."""
    return ONEDNN_IS_FASTER and may_choose(x, weight) and x.numel() > 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` where no gradient is wanted."""
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    # The compiler takes the operator for one whose weight was packed before: it must not look inside.
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right up to rounding, without a gradient: of gradients and inputs the gradient of a weight.

    Args:
        left: (N, a).
        right: (N, b).

    Returns:
        (a, b), of any strides.
    """
    if not by_onednn(left, right):
        return left.T @ right
    # oneDNN wants the first factor in rows, so a factor is copied: the smaller one.
    return product(left.T, right.T) if left.numel() <= right.numel() else product(right.T, left.T).T


def add_outer(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left^T @ right in at least fp32, where the total is given up for the sum.

    Args:
        total: (a, b), a result of this; None: 0.
        left: (N, a).
        right: (N, b).

    Returns:
        (a, b), of any strides.
    """
    if total is None:
        return outer(left, right).to(torch.promote_types(left.dtype, torch.float32))
    if total.dtype == left.dtype and not by_onednn(left, right):
        return total.addmm_(left.T, right)
    return total.add_(outer(left, right))


@library.custom_op("llmscale::product", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    """`product` of rows with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.T) if for_x else None,
            outer(gradient, x).contiguous() if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )
