"""Predict the next token: causal LM, the part after a prefix, or the target after a source."""

from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.model import Transformer


def loss(model: Transformer, batch: Batch) -> Tensor:
    """Sum over the targets of weight x negative log-likelihood in nats, an fp32 scalar.

    A sum rather than a mean: only the caller knows the number of target tokens of the global batch.
    """
    hidden = model(batch.inputs, batch.positions, batch.segment_ids, batch.prefix_lengths)
    return model.head(hidden, batch.targets, batch.weights)
