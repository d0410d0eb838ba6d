"""The loss of a projection to the vocabulary, and scores of tokens, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmscale.model.linear import add_outer, linear

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at a time: enough that the weight's gradient is not read and written too often."""


class Rows:
    """Which rows of the vocabulary a weight has, and how to combine them with the others: here it has all."""

    first = 0
    """Number of the first row."""

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each value over all rows, in place."""
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum of each value over all rows, in place."""
        return values


ALL_ROWS = Rows()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
    rows: Rows = ALL_ROWS,
) -> Tensor:
    """Weighted sum of the cross-entropy of softmax(hidden @ weight^T + bias), a few rows of logits at a time.

    The gradients of hidden, weight and bias are computed in the forward pass, while a chunk's logits are at hand, as in
    Liger Kernel (Hsu et al. 2024, section 3.2). The softmax is at least fp32.

    Args:
        hidden: (N, D).
        weight: (rows, D); rows from vocab_size on take no part.
        targets: (N,) int64.
        weights: (N,) floats; no gradient flows to them.
        bias: (rows,).
        rows: which rows of the vocabulary weight and bias have; the gradient of hidden is that through these alone.

    Returns:
        A scalar of at least fp32.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, vocab_size, rows)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    for chunk in _chunks(hidden.shape[0]):
        logits = linear(hidden[chunk], weight, bias)
        loss, *_ = _softmax(logits, _targets(targets[chunk, None], rows, weight), vocab_size - rows.first, rows)
        total += (loss * weights[chunk, None]).sum()
    return total


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    bias: Tensor | None = None,
    rows: Rows = ALL_ROWS,
) -> Tensor:
    """Log-probabilities of tokens under softmax(hidden @ weight^T + bias), a few rows of logits at a time.

    Args:
        hidden: (P, D).
        weight: (rows, D); rows from vocab_size on take no part.
        targets: (P, M) int64.
        bias: (rows,).
        rows: which rows of the vocabulary weight and bias have.

    Returns:
        (2, P, M) of at least fp32: log-probabilities in nats, and 1 where no token is more probable, else 0.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    scores = torch.empty(2, *targets.shape, dtype=wide, device=hidden.device)
    for chunk in _chunks(hidden.shape[0]):
        logits = linear(hidden[chunk], weight, bias).to(wide)
        logits[:, max(vocab_size - rows.first, 0) :] = -torch.inf
        maximum = rows.largest(logits.amax(1, keepdim=True))
        place, here = _targets(targets[chunk], rows, weight)
        chosen = logits.gather(1, place)
        if rows is not ALL_ROWS:
            chosen = rows.total(chosen.masked_fill(here == 0, 0.0))
        normalizer = rows.total(logits.sub_(maximum).exp_().sum(1, keepdim=True))
        scores[0, chunk] = chosen - maximum - normalizer.log()
        scores[1, chunk] = (chosen >= maximum).to(wide)
    return scores


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, weight, bias, targets, weights, vocab_size, rows = inputs
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=wide) if ctx.needs_input_grad[2] else None
        for chunk in _chunks(hidden.shape[0]):
            x, target, scale = (
                hidden[chunk],
                _targets(targets[chunk, None], rows, weight),
                weights[chunk, None].to(wide),
            )
            logits = linear(x, weight, bias)
            loss, exponentials, normalizer = _softmax(logits, target, vocab_size - rows.first, rows)
            total += (loss * scale).sum()
            # d loss / d logits = scale / normalizer x (exponentials - normalizer x onehot). The first factor is
            # applied to the narrow side of each product, which spares two passes over the logits.
            place, here = target
            gradient = exponentials.scatter_add_(1, place, -normalizer * here).to(weight.dtype)
            scale = scale / normalizer
            if grad_hidden is not None:
                torch.mul(linear(gradient, weight.T), scale, out=grad_hidden[chunk])
            if ctx.needs_input_grad[1]:
                grad_weight = add_outer(grad_weight, gradient, (x * scale).to(x.dtype))
            if grad_bias is not None:
                grad_bias += scale[:, 0] @ gradient.to(wide)
        if ctx.needs_input_grad[1] and grad_weight is None:  # for want of rows
            grad_weight = torch.zeros_like(weight, dtype=wide)
        narrow = [None if grad is None else grad.to(weight.dtype) for grad in (grad_weight, grad_bias)]
        ctx.save_for_backward(grad_hidden, *narrow)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = [None if value is None else _scaled(value, scale) for value in ctx.saved_tensors]
        return *grads, None, None, None, None


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """A gradient times a scalar of at least fp32. Rounding the scalar, such as 1 / targets, to the gradient's own bf16
    first would change the length of the whole gradient by up to 2^-8."""
    return (gradient.to(scale.dtype) * scale).to(gradient.dtype).contiguous()


def _chunks(tokens: int) -> list[slice]:
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, tokens, CHUNK_TOKENS)]


def _targets(targets: Tensor, rows: Rows, weight: Tensor) -> tuple[Tensor, Tensor | int]:
    """Places of the targets (n, M) among the rows of the weight, and 1 where they are there, else 0 at place 0."""
    places = targets - rows.first
    if rows is ALL_ROWS:
        return places, 1
    here = ((places >= 0) & (places < weight.shape[0])).long()
    return places * here, here


def _softmax(
    logits: Tensor, target: tuple[Tensor, Tensor | int], vocab_size: int, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, rows) logits and targets to the (n, 1) losses, exp(logits - maximum) and the (n, 1) sums of all rows' ones.

    The logits are overwritten where they are wide enough. Written out since log_softmax followed by exp takes more
    than twice as long on CPU.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits[:, max(vocab_size, 0) :] = -torch.inf
    maximum = rows.largest(logits.amax(1, keepdim=True))
    place, here = target
    chosen = logits.gather(1, place)
    if rows is not ALL_ROWS:
        chosen = rows.total(chosen.masked_fill(here == 0, 0.0))
    exponentials = logits.sub_(maximum).exp_()
    normalizer = rows.total(exponentials.sum(1, keepdim=True))
    return normalizer.log() + maximum - chosen, exponentials, normalizer
