"""Products of groups of rows with a matrix for each group, in eager mode and inside torch.compile."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.autograd.function import once_differentiable

from llmscale.model.linear import by_onednn, may_choose, outer, product


def grouped_product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows times the transposed matrix of the group.

    Args:
        rows: (N, inputs), the groups one after the other.
        weights: (groups, outputs, inputs).
        ends: (groups,) int32, where each group ends, the last one with the rows.

    Returns:
        (N, outputs).
    """
    # torch 2.13 computes this in any dtype, but traces it in bf16 only: the compiler must not look inside.
    if torch.compiler.is_compiling() and (may_choose(rows, weights) or rows.dtype != torch.bfloat16):
        return _opaque_product(rows, weights, ends)
    if may_choose(rows, weights):
        return _Grouped.apply(rows, weights, ends)
    return F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)


def _product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    if by_onednn(rows, weights) or not len(rows):  # none of which torch cannot take
        return torch.cat([product(group, weight) for group, weight in zip(_groups(rows, ends), weights, strict=True)])
    return F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """(N, a) and (N, b) to (groups, a, b): the products of the groups' rows, summed within each group."""
    if by_onednn(left, right) or not len(left):
        return torch.stack([outer(*pair) for pair in zip(_groups(left, ends), _groups(right, ends), strict=True)])
    return F.grouped_mm(left.T, right, offs=ends)


def _groups(rows: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return rows.tensor_split(ends[:-1].long())


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(
    ctx: Any, gradient: Tensor, product: Callable[..., Tensor] = _product, outer: Callable[..., Tensor] = _outer
) -> tuple[Tensor | None, ...]:
    rows, weights, ends = ctx.saved_tensors
    gradient = gradient.contiguous()  # a sum's is a number that is expanded, which torch cannot take
    return (
        product(gradient, weights.transpose(-2, -1), ends) if ctx.needs_input_grad[0] else None,
        outer(gradient, rows, ends) if ctx.needs_input_grad[1] else None,
        None,
    )


class _Grouped(torch.autograd.Function):
    """`_product` with its gradients."""

    forward = staticmethod(_product)
    setup_context = staticmethod(_keep)
    backward = staticmethod(once_differentiable(_backward))


# The same as operators, into which the compiler does not look. Calling one imports the compiler.
_opaque_product = library.custom_op("llmscale::grouped_product", _product, mutates_args=())
_opaque_outer = library.custom_op("llmscale::grouped_outer", _outer, mutates_args=())


@_opaque_product.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[1])


@_opaque_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


_opaque_product.register_autograd(
    functools.partial(_backward, product=_opaque_product, outer=_opaque_outer), setup_context=_keep
)
