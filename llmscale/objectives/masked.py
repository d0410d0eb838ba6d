"""Predict hidden tokens, and whether the second segment follows the first (BERT; Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batch import Batch
from llmscale.model import Dropout, Output, Transformer
from llmscale.objectives.loss import TokenLoss, real_tokens


class MaskedLoss(TokenLoss):
    """For encoders. With `next_sentence` the mean of its loss over the pairs is added."""

    def __init__(self, experts: bool, next_sentence: bool) -> None:
        super().__init__(experts)
        self.next_sentence = next_sentence
        if next_sentence:
            self.terms = (*self.terms, "next_sentence_loss")

    def sums(self, model: Transformer, output: Output, batch: Batch) -> list[Tensor]:
        terms = super().sums(model, output, batch)
        if self.next_sentence:
            assert model.next_sentence is not None
            logits = model.next_sentence(output.hidden).to(terms[0].dtype)
            terms.append(F.cross_entropy(logits, batch.labels["next_sentence"], ignore_index=-1, reduction="sum"))
        return terms

    def counts(self, batch: Batch) -> list[float]:
        counts = super().counts(batch)
        if self.next_sentence:
            counts[-1] = float((batch.labels["next_sentence"] >= 0).sum())
        return counts

    def output(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Output:
        return model(
            batch.inputs, token_types=batch.segment_ids, real=real_tokens(batch.encoder_weights), dropout=dropout
        )

    def of_tokens(self, model: Transformer, hidden: Tensor, batch: Batch) -> Tensor:
        # Most tokens are not hidden, and the head is a large part of the work.
        chosen = batch.weights > 0
        return model.head(hidden[chosen], batch.targets[chosen], batch.weights[chosen])
