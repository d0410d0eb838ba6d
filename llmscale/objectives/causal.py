"""Predict the next token: causal LM, the part after a prefix, or the target after a source."""

from __future__ import annotations

from data_pipeline.batch import Batch
from llmscale.model import Dropout, Output, Transformer
from llmscale.objectives.loss import TokenLoss


class CausalLoss(TokenLoss):
    """For decoders."""

    def output(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Output:
        return model(
            batch.inputs,
            batch.positions,
            batch.segment_ids,
            batch.prefix_lengths,
            shared_lengths=batch.shared_lengths,
            dropout=dropout,
        )
