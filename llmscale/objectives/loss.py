"""The loss of a model: the sums of its heads' losses over a batch, and what to divide them by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.objectives import ObjectiveSettings
from llmscale.config import ModelConfig
from llmscale.model import Dropout, Output, Transformer
from llmscale.model.heads import Head
from llmscale.objectives import model_side


def build_loss(objective: ObjectiveSettings, model: ModelConfig) -> Loss:
    """The loss of an objective for a model that `llmscale.layout` lets it train."""
    side = model_side(objective)
    return Loss(model, side.heads(model), sparse=side.sparse)


class Loss:
    """One or more terms that are minimised together: each a sum over the batch, divided by its count over the whole
    global batch. Only the caller knows that count, so how a batch is cut never enters the gradient.

    The first is that of the first head. Where there are experts the router's loss follows: that of each sequence, times
    its targets; then those of the other heads.
    """

    def __init__(self, model: ModelConfig, heads: tuple[Head, ...], sparse: bool) -> None:
        """`sparse`: whether most positions are no targets, so that the first head had better see the others alone."""
        self.heads = heads
        self._architecture = model.architecture
        self._segments = model.token_types > 1  # RoBERTa has one type for all
        self._sparse = sparse
        experts = any(model.has_experts(layer) for layer in range(model.layers))
        self._first, *self._others = heads
        self._router = ["router_loss"] if experts else []
        self.terms = ("loss", *self._router, *(f"{head.name}_loss" for head in self._others))
        """Names of the terms, as metrics show them. The first is the loss per target."""
        self.measures = self._first.measures
        """Names of what is measured of held-out samples besides the first term, each divided by its count."""
        self.shared = self._first.shared
        """Which of them the loss itself needs, as its mean over the global batch; None: none."""
        self.whole_batch = self._first.whole_batch
        """Whether the loss of a sample depends on the others of its global batch."""

    def __call__(
        self, model: Transformer, batch: Batch, dropout: Dropout | None = None, targets: Batch | None = None
    ) -> Tensor:
        """The sum of each term over the batch, (terms,) of at least fp32; of a model in evaluation mode followed by the
        sum of each of `measures`.

        Args:
            dropout: what training drops.
            targets: the batch with the targets, weights and labels that fit the hidden states which the model gives,
                where those are of some positions only; None: `batch` has them.
        """
        return torch.stack(self.sums(model, self.output(model, batch, dropout), targets or batch, dropout))

    def counts(self, batch: Batch) -> list[float]:
        """What the sum of each term over a batch is divided by, once it is added up over the global batch."""
        targets = self._first.count(batch)
        return [targets, *(targets for _ in self._router), *(head.count(batch) for head in self._others)]

    def output(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Output:
        """What the model makes of the batch, where that is not known; of rows of several texts what it makes of each of
        them."""
        if batch.features is not None:
            return Output(batch.features)
        texts = self._first.texts(batch)
        if texts > 1:
            batch, dropout = texts_of(batch, texts), None if dropout is None else dropout.repeated(texts)
        match self._architecture:
            case "decoder":
                return model(
                    batch.inputs,
                    batch.positions,
                    batch.segment_ids,
                    batch.prefix_lengths,
                    shared_lengths=batch.shared_lengths,
                    dropout=dropout,
                )
            case "encoder":
                types = batch.segment_ids if self._segments else None
                mask = padding_mask_of(batch.encoder_weights)
                return model(batch.inputs, token_types=types, padding_mask=mask, dropout=dropout)
            case _:
                mask = padding_mask_of(batch.encoder_weights)
                encoder = {"encoder_inputs": batch.encoder_inputs, "encoder_padding_mask": mask}
                return model(batch.inputs, **encoder, dropout=dropout)

    def represent(self, model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Tensor:
        """(B, ...) what the losses of other samples take of each."""
        hidden = self.output(model, batch, dropout).hidden
        return self._first.represent(getattr(model, self._first.attribute), hidden, batch)

    def predict(self, model: Transformer, batch: Batch) -> Tensor:
        """The logits of the first head, which is no language model's: (B, outputs), or (B, T, outputs) of each
        position."""
        logits: Tensor = self._first.logits(  # type: ignore[attr-defined]
            getattr(model, self._first.attribute), self.output(model, batch).hidden, batch
        )
        return logits

    def condense(self, model: Transformer, batch: Batch) -> Tensor:
        """All that the head reads of each row: (B, hidden_size), or (B, T, hidden_size); see `Head.features`."""
        return self._first.condensed(self.output(model, batch).hidden, batch)

    def of_whole_batch(self, represented: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Labels by which micro batches know their global batch; see `Head.of_whole_batch`."""
        return self._first.of_whole_batch(represented, labels)

    def sums(self, model: Transformer, output: Output, batch: Batch, dropout: Dropout | None = None) -> list[Tensor]:
        """The terms one by one, scalars of one dtype, and in evaluation mode the measures."""
        keys = None if dropout is None else dropout.for_head()
        hidden, targets = output.hidden, batch
        if self._sparse:
            # Most tokens are no targets, and the head is a large part of the work.
            chosen = batch.weights > 0
            hidden = hidden[chosen]
            targets = replace(batch, targets=batch.targets[chosen], weights=batch.weights[chosen])
        terms = [self._first.loss(getattr(model, self._first.attribute), hidden, targets, keys)]
        if output.router_loss is not None:
            router_loss = output.router_loss.view(batch.size, -1).mean(1)  # over a sample's texts
            terms.append((router_loss * batch.weights.sum(1)).sum().to(terms[0].dtype))
        for head in self._others:
            own = head.loss(getattr(model, head.attribute), output.hidden, batch, keys)
            terms.append(own.to(terms[0].dtype))
        if self.measures and not model.training:
            terms += self._first.measure(getattr(model, self._first.attribute), hidden, targets)
        return terms


def texts_of(batch: Batch, texts: int) -> Batch:
    """The texts of a batch's rows, (B * texts, T), for the model alone."""
    count = batch.size * texts
    weights = None if batch.encoder_weights is None else batch.encoder_weights.reshape(count, -1)
    return replace(batch, inputs=batch.inputs.reshape(count, -1), encoder_weights=weights)


def padding_mask_of(weights: Tensor | None) -> Tensor | None:
    """(B, S) weights, 0 for padding, to booleans; None where there is none, which is faster."""
    if weights is None or bool((weights > 0).all()):
        return None
    return weights > 0
