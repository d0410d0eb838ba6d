"""What every loss gives: sums over a batch, and what to divide them by."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.model import Dropout, Output, Transformer


class Loss(ABC):
    """One or more terms that are minimised together: each a sum over the batch, divided by its count over the whole
    global batch. Only the caller knows that count, so how a batch is cut never enters the gradient."""

    terms: tuple[str, ...] = ("loss",)
    """Names of the terms, as metrics show them. The first is the loss per target token."""

    @abstractmethod
    def __call__(
        self, model: Transformer, batch: Batch, dropout: Dropout | None = None, targets: Batch | None = None
    ) -> Tensor:
        """The sum of each term over the batch, (terms,) of at least fp32.

        Args:
            dropout: what training drops.
            targets: the batch with the targets, weights and labels that fit the hidden states which the model gives,
                where those are of some positions only; None: `batch` has them.
        """

    def counts(self, batch: Batch) -> list[float]:
        """What the sum of each term over a batch is divided by, once it is added up over the global batch."""
        return [float(batch.weights.sum(dtype=torch.float64))] * len(self.terms)


class TokenLoss(Loss):
    """Sum over the targets of weight x negative log-likelihood in nats, and the router's loss where there are experts:
    that of each sequence, times its targets."""

    def __init__(self, experts: bool) -> None:
        self.experts = experts
        if experts:
            self.terms = ("loss", "router_loss")

    def __call__(
        self, model: Transformer, batch: Batch, dropout: Dropout | None = None, targets: Batch | None = None
    ) -> Tensor:
        return torch.stack(self.sums(model, self.output(model, batch, dropout), targets or batch))

    def sums(self, model: Transformer, output: Output, batch: Batch) -> list[Tensor]:
        """The terms one by one, scalars of one dtype."""
        loss = self.of_tokens(model, output.hidden, batch)
        if output.router_loss is None:
            return [loss]
        return [loss, (output.router_loss * batch.weights.sum(1)).sum().to(loss.dtype)]

    @abstractmethod
    def output(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Output:
        """What the model makes of the batch."""

    def of_tokens(self, model: Transformer, hidden: Tensor, batch: Batch) -> Tensor:
        """The summed loss of the targets, a scalar."""
        return model.head(hidden, batch.targets, batch.weights)


def real_tokens(weights: Tensor | None) -> Tensor | None:
    """(B, S) weights, 0 for tokens that fill up, to booleans; None where nothing fills up, which is faster."""
    if weights is None or bool((weights > 0).all()):
        return None
    return weights > 0
