"""Losses, one file per objective: what a model must predict from a `Batch`."""

from collections.abc import Callable

from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.objectives import causal

Loss = Callable[[nn.Module, Batch], Tensor]

LOSSES: dict[str, Loss] = {"causal": causal.loss, "prefix": causal.loss, "seq2seq": causal.loss}
"""Loss by `objective.name`: the sum over a batch's targets of weight x loss, an fp32 scalar."""
