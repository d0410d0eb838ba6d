"""Predict a target from what the encoder reads: spans that were cut out (T5), or the second text of a pair."""

from __future__ import annotations

from data_pipeline.batch import Batch
from llmscale.model import Dropout, Output, Transformer
from llmscale.objectives.loss import TokenLoss, real_tokens


class EncoderDecoderLoss(TokenLoss):
    """For encoder-decoders."""

    def output(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Output:
        return model(
            batch.inputs,
            encoder_inputs=batch.encoder_inputs,
            encoder_real=real_tokens(batch.encoder_weights),
            dropout=dropout,
        )
