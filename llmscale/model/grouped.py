"""Products of groups of rows with a matrix for each group, in eager mode and inside torch.compile."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

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
    if may_choose(rows, weights) or (torch.compiler.is_compiling() and rows.dtype != torch.bfloat16):
        return _product(rows, weights, ends)
    return F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)


@library.custom_op("llmscale::grouped_product", mutates_args=())
def _product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    if by_onednn(rows, weights) or not len(rows):  # none of which torch cannot take
        return torch.cat([product(group, weight) for group, weight in zip(_groups(rows, ends), weights, strict=True)])
    return F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)


@library.custom_op("llmscale::grouped_outer", mutates_args=())
def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """(N, a) and (N, b) to (groups, a, b): the products of the groups' rows, summed within each group."""
    if by_onednn(left, right) or not len(left):
        return torch.stack([outer(*pair) for pair in zip(_groups(left, ends), _groups(right, ends), strict=True)])
    return F.grouped_mm(left.T, right, offs=ends)


def _groups(rows: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return rows.tensor_split(ends[:-1].long())


@_product.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[1])


@_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    rows, weights, ends = ctx.saved_tensors
    gradient = gradient.contiguous()  # a sum's is a number that is expanded, which torch cannot take
    return (
        _product(gradient, weights.transpose(-2, -1), ends) if ctx.needs_input_grad[0] else None,
        _outer(gradient, rows, ends) if ctx.needs_input_grad[1] else None,
        None,
    )


_product.register_autograd(_backward, setup_context=_keep)
